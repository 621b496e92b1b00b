"""The products of the dense regime against float64."""

import pytest
import torch

from tide_kernels import triton
from tide_kernels.testing import assert_close

# Sums in float32; float16 results are rounded once more, by half a unit in the last of 11 bits, on entries of up to
# about four times the RMS.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4 * 2**-11}

DTYPES = [torch.float16, torch.float32]
SHAPES = [
    pytest.param(2, 1, 1, id="one latent of width 1"),
    pytest.param(38, 83, 70, id="tiles that are mostly mask, in all three directions"),
    pytest.param(64, 32, 32, id="whole tiles"),
]
SOFT_EPS = 0.1


@pytest.fixture
def masked(normal):
    """A masked chunk, and its gradient and weights."""

    def make(n_tokens, n_latents, d_model, dtype):
        z = normal(n_tokens, n_latents, dtype=dtype).relu()
        return z, normal(n_tokens, d_model, dtype=dtype), normal(n_latents, d_model, dtype=dtype)

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("terms", ["plain", "pairs", "soft", "pairs and soft"])
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model"), SHAPES)
def test_masked_gradient(n_tokens, n_latents, d_model, terms, dtype, masked, normal, device):
    z, grad, W = masked(n_tokens, n_latents, d_model, dtype)
    pair_factor = 0.3 if "pairs" in terms else 0.0
    soft_factor = torch.tensor(0.7, device=device) if "soft" in terms else None
    bias, fired = normal(n_latents), torch.randint(5, (n_latents,), device=device)
    bias_before, fired_before = bias.double(), fired.clone()
    out = triton.masked_gradient(grad, W, z, pair_factor, soft_factor, SOFT_EPS, bias, fired)

    code = z.double()
    partner = code.view(-1, 2, n_latents).flip(1).reshape_as(code)
    expected = grad.double() @ W.double().T + pair_factor * (code - partner)
    if soft_factor is not None:
        expected += 0.7 * 2 * SOFT_EPS**2 * code / (n_latents * (code.square() + SOFT_EPS**2).square())
    assert out.dtype == dtype
    assert_close(out, expected * (z != 0), TOLERANCE[dtype])
    assert_close(bias, bias_before + out.double().sum(0), 1e-5, "grad_b_enc")
    assert torch.equal(fired, fired_before + (z != 0).sum(0))


def test_masked_gradient_without_sums_and_with_an_odd_number_of_tokens(masked):
    z, grad, W = masked(5, 33, 20, torch.float32)
    out = triton.masked_gradient(grad, W, z, 0.0, None, SOFT_EPS, None, None)
    assert_close(out, (grad.double() @ W.double().T) * (z != 0), 1e-5)


def test_nan_is_selected_and_stays_in_its_place(masked, device):
    z, grad, W = masked(4, 40, 20, torch.float32)
    z[1, 7] = torch.nan
    fired = torch.zeros(40, dtype=torch.int64, device=device)
    out = triton.masked_gradient(grad, W, z, 0.5, None, SOFT_EPS, None, fired)
    # It also reaches the pair's other row, if that latent is active there.
    shows = torch.zeros(4, 40, dtype=torch.bool, device=device)
    shows[1, 7], shows[0, 7] = True, z[0, 7] != 0
    assert torch.equal(out.isnan(), shows)
    assert torch.equal(fired, (z != 0).sum(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "paired"), [(6, True), (6, False), (5, False)])
def test_code_sums(n_tokens, paired, dtype, masked):
    z = masked(n_tokens, 83, 1, dtype)[0]
    temporal, soft = triton.code_sums(z, paired, SOFT_EPS)
    code = z.double()
    expected = (code[0::2] - code[1::2]).square().sum() if paired else torch.zeros(())
    assert_close(temporal, expected, 1e-6, "temporal")
    assert_close(soft, (code.square() / (code.square() + SOFT_EPS**2)).sum() / 83, 1e-6, "soft")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "n_latents", "d_model"), SHAPES)
def test_plain_products(n_tokens, n_latents, d_model, dtype, masked, normal):
    z, rows, W = masked(n_tokens, n_latents, d_model, dtype)
    assert_close(triton.decode_dense(z, W), z.double() @ W.double(), 1e-5, "decode_dense")
    out = normal(n_latents, d_model)
    expected = out.double() + z.double().T @ rows.double()
    triton.add_product_(out, z, rows.float())
    assert_close(out, expected, 1e-5, "add_product_")


def test_no_tokens(normal, device):
    z, grad, W = normal(0, 33), normal(0, 20), normal(33, 20)
    bias, fired, out = normal(33), torch.ones(33, dtype=torch.int64, device=device), normal(33, 20)
    before = bias.clone(), fired.clone(), out.clone()
    assert triton.masked_gradient(grad, W, z, 0.5, None, SOFT_EPS, bias, fired).shape == (0, 33)
    assert [float(total) for total in triton.code_sums(z, True, SOFT_EPS)] == [0, 0]
    assert triton.decode_dense(z, W).shape == (0, 20)
    triton.add_product_(out, z, grad)
    for after, was in zip((bias, fired, out), before, strict=True):
        assert torch.equal(after, was)

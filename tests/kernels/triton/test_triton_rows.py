"""What goes over whole tokens: `modulate`, `reconstruction_loss` and `encoder_gradients`, against float64."""

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.losses import cosine_distance, squared_error
from tide_kernels.testing import assert_close
from tide_kernels.triton import configs

# Float32 arithmetic; float16 adds the rounding of the result (modulate) or of x_mod, an operand (gradients).
TOLERANCE = {torch.float32: 1e-5, torch.float16: 8 * 2**-11}

DTYPES = [torch.float16, torch.float32]
MODULATIONS = ["scale and shift by group", "a single group", "shift alone", "nothing"]


@pytest.fixture
def modulation(normal, device, generator):
    """Scale, shift and group; group 3 of 4 has no token."""

    def make(kind, n_tokens, d_model, dtype):
        scale, shift = normal(4, d_model, dtype=dtype, size=0.3), normal(4, d_model, dtype=dtype, size=0.3)
        group = torch.randint(3, (n_tokens,), generator=generator).to(device)
        return {
            MODULATIONS[0]: (scale, shift, group),
            MODULATIONS[1]: (scale[1:2], shift[1:2], None),
            MODULATIONS[2]: (None, shift, group),
            MODULATIONS[3]: (None, None, None),
        }[kind]

    return make


def double(*tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", MODULATIONS)
def test_modulate(kind, layer_norm, dtype, modulation, normal):
    x = normal(11, 70, dtype=dtype) + 3  # a mean far from 0, which a one-pass variance would lose digits to
    scale, shift, group = modulation(kind, 11, 70, dtype)
    out = triton.modulate(x, scale, shift, group, layer_norm, dtype)
    assert out.dtype == dtype
    expected = reference.modulate(x.double(), *double(scale, shift), group, layer_norm, torch.float64)
    assert_close(out, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("kind", MODULATIONS)
@pytest.mark.parametrize("way", ["by group", "by way of x_mod"])
def test_encoder_gradients(way, kind, layer_norm, dtype, modulation, normal, monkeypatch):
    n_tokens, n_latents, d_model = 41, 35, 70
    table = {**configs._TABLE}
    tile = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 16, "SWIZZLE": 8, "num_warps": 4, "num_stages": 1}
    tile["group_tokens"] = 0 if way == "by group" else 1000
    table["encoder_gradients"] = (configs.Rule("", 0, float("inf"), tile),)
    monkeypatch.setattr(configs, "_TABLE", table)
    configs.lookup.cache_clear()

    x = normal(n_tokens, d_model, dtype=dtype)
    scale, shift, group = modulation(kind, n_tokens, d_model, dtype)
    grad_pre, W = normal(n_tokens, n_latents, dtype=dtype).relu(), normal(n_latents, d_model, dtype=dtype)
    x_mod = triton.modulate(x, scale, shift, group, layer_norm, dtype)
    sums = [normal(n_latents, d_model), *(None if t is None else normal(*t.shape) for t in (scale, shift))]
    expected = double(*sums)
    triton.encoder_gradients(grad_pre, x, x_mod, scale, shift, group, layer_norm, W, *sums)

    # In terms of x_mod before its rounding, which the way by group never sees.
    u = reference.normalised(x.double(), layer_norm)
    exact = reference.modulate(x.double(), *double(scale, shift), group, layer_norm, torch.float64)
    grad_x_mod = grad_pre.double() @ W.double()
    rows = torch.zeros(n_tokens, dtype=torch.int64, device=x.device) if group is None else group
    expected[0] += grad_pre.double().T @ exact
    for total, part in zip(expected[1:], (grad_x_mod * u, grad_x_mod), strict=True):
        if total is not None:
            total.index_add_(0, rows, part)
    for name, total, wanted in zip(("W_enc", "scale", "shift"), sums, expected, strict=True):
        if total is not None:
            assert_close(total, wanted, TOLERANCE[dtype], name)
    configs.lookup.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("cosine_factor", "grad_dtype", "want_error"),
    [
        pytest.param(0.3, torch.float32, True, id="all"),
        pytest.param(0.0, torch.float16, False, id="no gradient of the cosine, rounded gradient"),
        pytest.param(0.3, None, False, id="sums alone"),
    ],
)
def test_reconstruction_loss(cosine_factor, grad_dtype, want_error, bias, dtype, normal):
    x, x_hat, b = normal(9, 70, dtype=dtype), normal(9, 70), normal(70, dtype=dtype) if bias else None
    x[4] = 0
    x_hat[2] = 0 if b is None else -b.float()
    squared, distance, grad, error = triton.reconstruction_loss(x, x_hat, b, 0.7, cosine_factor, grad_dtype, want_error)
    rebuilt = x_hat.double() if b is None else x_hat.double() + b.double()
    expected_error, expected_squared = squared_error(x.double(), rebuilt)
    expected_distance, slope = cosine_distance(x.double(), rebuilt, cosine_factor)
    assert_close(squared, expected_squared, 1e-6, "squared")
    assert_close(distance, expected_distance, 1e-6, "distance")
    assert (grad is None) == (grad_dtype is None)
    if grad is not None:
        expected = 0.7 * expected_error + (0 if slope is None else slope)
        assert_close(grad, expected, TOLERANCE[grad.dtype], "grad")
    assert (error is None) != want_error
    if error is not None:
        assert_close(error, expected_error, 1e-6, "error")


def test_nan_shows_in_the_loss_of_its_token_alone(normal):
    x, x_hat = normal(3, 70), normal(3, 70)
    x_hat[1, 69] = torch.nan
    squared, distance, grad, _ = triton.reconstruction_loss(x, x_hat, None, 1.0, 1.0, torch.float32, False)
    assert squared.isnan()
    assert distance.isnan()
    assert grad.isnan().any(1).tolist() == [False, True, False]


def test_no_tokens(normal):
    x, W = normal(0, 70), normal(35, 70)
    assert triton.modulate(x, None, None, None, True, torch.float16).shape == (0, 70)
    squared, distance, grad, error = triton.reconstruction_loss(x, x, None, 1.0, 1.0, torch.float32, True)
    assert float(squared) == float(distance) == 0
    assert grad.shape == error.shape == (0, 70)
    sums = [normal(35, 70), normal(1, 70), normal(1, 70)]
    before = [t.clone() for t in sums]
    triton.encoder_gradients(normal(0, 35), x, x, sums[1], sums[2], None, False, W, *sums)
    for after, was in zip(sums, before, strict=True):
        assert torch.equal(after, was)

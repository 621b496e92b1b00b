"""`gather`, `sampled`, `scatter` and `backward_latents` against the reference in float64."""

import importlib

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.testing import assert_close

# Sums are in float32 over operands that are exact in it: some hundred terms, each rounded once.
TOLERANCE = 1e-5

DTYPES = [torch.float16, torch.float32]
SHAPES = [
    pytest.param(1, 1, 1, 1, id="one of everything"),
    pytest.param(5, 3, 17, 70, id="d of one full and one masked tile"),
    pytest.param(33, 5, 23, 130, id="popular latents: several pieces of places"),
    pytest.param(3, 9, 4, 16, id="k above n: every latent repeated"),
]


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch):
    monkeypatch.setattr(importlib.import_module("tide_kernels.triton.transpose"), "PIECE", 16)


@pytest.fixture
def code(normal, device, generator):
    """A code in any order, with repeats and unused places anywhere, whose values are NaN."""

    def make(n_tokens, k, n_latents, dtype):
        indices = torch.randint(-1, n_latents, (n_tokens, k), generator=generator, dtype=torch.int32)
        indices[:, 0] = 0  # popular
        indices[n_tokens // 2] = -1
        values = normal(n_tokens, k, dtype=dtype)
        values[indices.to(device) < 0] = torch.nan
        return values, indices.to(device)

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n_tokens", "k", "n_latents", "d_model"), SHAPES)
def test_products(n_tokens, k, n_latents, d_model, dtype, code, normal):
    values, indices = code(n_tokens, k, n_latents, dtype)
    W, rows = normal(n_latents, d_model, dtype=dtype), normal(n_tokens, d_model, dtype=dtype)
    expected = reference.gather(values.double(), indices, W.double())
    assert_close(triton.gather(values, indices, W), expected, TOLERANCE, "gather")
    expected = reference.sampled(rows.double(), W.double(), indices)
    assert_close(triton.sampled(rows, W, indices), expected, TOLERANCE, "sampled")
    out = normal(n_latents, d_model)
    expected = out.double()
    reference.scatter(values.double(), reference.transpose(indices, n_latents), rows.double(), expected)
    triton.scatter(values, triton.transpose(indices, n_latents), rows, out)
    assert_close(out, expected, TOLERANCE, "scatter")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize(("n_tokens", "k", "n_latents", "d_model"), SHAPES)
def test_backward_latents(n_tokens, k, n_latents, d_model, with_extra, dtype, code, normal):
    values, indices = code(n_tokens, k, n_latents, dtype)
    W, grad = normal(n_latents, d_model, dtype=dtype), normal(n_tokens, d_model, dtype=dtype)
    x_mod, extra = normal(n_tokens, d_model, dtype=dtype), normal(n_tokens, k) if with_extra else None
    sums = {"W_dec": normal(n_latents, d_model), "W_enc": normal(n_latents, d_model), "b_enc": normal(n_latents)}
    expected = {name: t.double() for name, t in sums.items()}

    layout = triton.transpose(indices, n_latents)
    slopes = triton.backward_latents(values, indices, layout, grad, x_mod, W, extra, *sums.values())

    wanted = reference.sampled(grad.double(), W.double(), indices)
    if extra is not None:
        wanted += extra.double().masked_fill(indices < 0, 0)
    assert_close(slopes, wanted, TOLERANCE, "grad_values")
    layout = reference.transpose(indices, n_latents)
    rounded = slopes.to(dtype).double()  # as the product's operand
    reference.scatter(values.double(), layout, grad.double(), expected["W_dec"])
    reference.scatter(rounded, layout, x_mod.double(), expected["W_enc"])
    ones = torch.ones_like(slopes[:, :1]).double()
    reference.scatter(slopes.double(), layout, ones, expected["b_enc"].view(-1, 1))
    for name, total in sums.items():
        assert_close(total, expected[name], TOLERANCE, name)


def test_gradients_that_are_not_wanted(code, normal):
    values, indices = code(5, 3, 17, torch.float32)
    tokens = [normal(5, 20), normal(5, 20), normal(17, 20), None]
    layout = triton.transpose(indices, 17)
    slopes = triton.backward_latents(values, indices, layout, *tokens, None, None, None)
    assert_close(slopes, reference.sampled(tokens[0].double(), tokens[2].double(), indices), TOLERANCE)


def test_infinite_weights_stay_with_their_latent(device):
    W = torch.ones(4, 8, device=device)
    W[0] = torch.inf
    indices = torch.tensor([[-1, 2], [3, -1]], dtype=torch.int32, device=device)
    rows = torch.zeros(2, 8, device=device)
    assert torch.equal(triton.sampled(rows, W, indices), torch.zeros(2, 2, device=device))
    rows[0] = torch.nan
    assert triton.sampled(rows, W, indices).isnan().tolist() == [[False, True], [False, False]]


def test_no_tokens(normal, device):
    values, indices = normal(0, 3), torch.empty(0, 3, dtype=torch.int32, device=device)
    W, rows, out = normal(7, 20), normal(0, 20), normal(7, 20)
    before, layout = out.clone(), triton.transpose(indices, 7)
    assert triton.gather(values, indices, W).shape == (0, 20)
    assert triton.sampled(rows, W, indices).shape == (0, 3)
    triton.scatter(values, layout, rows, out)
    triton.backward_latents(values, indices, layout, rows, rows, W, None, out, out, out[:, 0].contiguous())
    assert torch.equal(out, before)

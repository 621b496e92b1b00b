"""`scatter` and `backward_latents`, on the layout of `transpose`, against the reference in float64."""

import importlib

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.testing import assert_close

# Sums are in float32 over operands that are exact in it: some hundred terms, each rounded once.
TOLERANCE = 1e-5

DTYPES = [torch.float16, torch.float32]
PIECE = 16


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch):
    for name in ("layout", "transpose"):
        monkeypatch.setattr(importlib.import_module(f"tide_kernels.triton.{name}"), "PIECE", PIECE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scatter(sizes, dtype, code, normal):
    n_tokens, k, n_latents, d_model = sizes
    values, indices = code(n_tokens, k, n_latents, dtype)
    rows, out = normal(n_tokens, d_model, dtype=dtype), normal(n_latents, d_model)
    expected = out.double()
    reference.scatter(values.double(), reference.transpose(indices, n_latents), rows.double(), expected)
    triton.scatter(values, triton.transpose(indices, n_latents), rows, out)
    assert_close(out, expected, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_extra", [False, True])
def test_backward_latents(sizes, with_extra, dtype, code, normal):
    n_tokens, k, n_latents, d_model = sizes
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


def test_no_tokens(normal, device):
    values, indices = normal(0, 3), torch.empty(0, 3, dtype=torch.int32, device=device)
    W, rows, out = normal(7, 20), normal(0, 20), normal(7, 20)
    before, layout = out.clone(), triton.transpose(indices, 7)
    triton.scatter(values, layout, rows, out)
    triton.backward_latents(values, indices, layout, rows, rows, W, None, out, out, out[:, 0].contiguous())
    assert torch.equal(out, before)

"""`gather` and `sampled` against the reference in float64."""

import pytest
import torch

from tide_kernels import reference, triton
from tide_kernels.testing import assert_close

# Sums are in float32 over operands that are exact in it: some hundred terms, each rounded once.
TOLERANCE = 1e-5

DTYPES = [torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gather(sizes, dtype, code, normal):
    n_tokens, k, n_latents, d_model = sizes
    values, indices = code(n_tokens, k, n_latents, dtype)
    W = normal(n_latents, d_model, dtype=dtype)
    expected = reference.gather(values.double(), indices, W.double())
    assert_close(triton.gather(values, indices, W), expected, TOLERANCE)
    out = normal(n_tokens, d_model)
    expected += out
    triton.add_gather_(out, values, indices, W)
    assert_close(out, expected, TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sampled(sizes, dtype, code, normal):
    n_tokens, k, n_latents, d_model = sizes
    _, indices = code(n_tokens, k, n_latents, dtype)
    W, rows = normal(n_latents, d_model, dtype=dtype), normal(n_tokens, d_model, dtype=dtype)
    expected = reference.sampled(rows.double(), W.double(), indices)
    assert_close(triton.sampled(rows, W, indices), expected, TOLERANCE)


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
    W, rows = normal(7, 20), normal(0, 20)
    assert triton.gather(values, indices, W).shape == (0, 20)
    assert triton.sampled(rows, W, indices).shape == (0, 3)

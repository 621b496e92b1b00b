"""The products of a caller's compact code, in both regimes, against the dense code."""

import pytest
import torch

from tide_kernels import dispatch, reference
from tide_kernels.dispatch import Choice, Primitives
from tide_kernels.products import DenseProducts, SparseProducts, products
from tide_kernels.testing import assert_close

EXACT = 1e-12  # float64, relative to the RMS
N, LATENTS, D, K = 6, 9, 5, 4


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def code():
    """A code in any order, with repeated latents and unused places (whose values are NaN), and the dense code."""
    generator = torch.Generator().manual_seed(3)
    indices = torch.randint(-1, LATENTS, (N, K), generator=generator, dtype=torch.int32)
    indices[0] = 2
    values = normal(N, K)
    unused = indices < 0
    assert unused.any()
    z = torch.zeros(N, LATENTS, dtype=torch.float64)
    z.scatter_add_(1, indices.clamp(min=0).long(), values.masked_fill(unused, 0))
    return values.masked_fill(unused, torch.nan), indices, z


def made(regime, indices):
    return products(Choice("reference", regime, Primitives.of(reference)), indices, LATENTS, torch.float64)


def test_the_regime_chooses_the_products(code):
    assert isinstance(made("sparse", code[1]), SparseProducts)
    assert isinstance(made("dense", code[1]), DenseProducts)
    assert set(dispatch.REGIMES) == {"auto", "sparse", "dense"}


def test_products_are_those_of_the_matrix(code, regime):
    values, indices, z = code
    W, rows, out, bias = normal(LATENTS, D), normal(N, D, seed=1), normal(LATENTS, D, seed=2), normal(LATENTS, seed=4)
    found = made(regime, indices)
    operand = found.operand(values)
    assert_close(found.gather(operand, W), z @ W, EXACT, "gather")
    expected = (rows @ W.T).gather(1, indices.clamp(min=0).long()).masked_fill(indices < 0, 0)
    assert_close(found.sampled(rows, W), expected, EXACT, "sampled")
    total, column_sum = out.clone(), bias.clone()
    found.scatter(operand, rows, total)
    assert_close(total, out + z.T @ rows, EXACT, "scatter")
    found.column_sum(operand, column_sum)
    assert_close(column_sum, bias + z.sum(0), EXACT, "column_sum")

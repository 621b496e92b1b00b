"""The Fréchet distance against its closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tide.errors import TideError
from tide.evaluation import frechet_distance


def sample(n: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) @ mixing + seed


def written_out(a: Tensor, b: Tensor) -> float:
    """By symmetric square roots of the covariances."""

    def root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    half = root(a.T.cov())
    between = (a.mean(0) - b.mean(0)).square().sum()
    return float(between + (a.T.cov() + b.T.cov() - 2 * root(half @ b.T.cov() @ half)).trace())


def test_in_one_dimension_by_hand():
    """Means 1 and 5, unbiased deviations 1 and 2: (5 - 1)^2 + (2 - 1)^2."""
    a, b = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[3.0], [5.0], [7.0]])
    assert frechet_distance(a, b) == pytest.approx(17, rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 31), (6, 40), (4, 3)], ids=["many", "one few", "fewer than dimensions"])
def test_it_is_the_written_out_formula(n, m):
    a, b = sample(n, 6, 1), sample(m, 6, 2)
    assert frechet_distance(a, b) == pytest.approx(written_out(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_diagonal_covariances_of_very_different_sizes():
    """Uncorrelated columns: the sum over the columns of squared differences of deviations; no digits are lost to the
    largest column."""
    signs = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    a, b = signs * torch.tensor([1e4, 1.0, 1e-4]), signs * torch.tensor([1e4, 3.0, 2e-4])
    deviation = (4 / 3) ** 0.5
    assert frechet_distance(a, b) == pytest.approx((2 * deviation) ** 2 + (1e-4 * deviation) ** 2, rel=1e-6)


def test_equal_sets_have_none_and_a_shift_its_square():
    a = sample(30, 8, 3)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a.float(), a.float() + 2) == pytest.approx(8 * 4, rel=1e-5)


def test_a_rotation_of_both_changes_nothing():
    a, b = sample(20, 5, 1), sample(25, 5, 2)
    turn = torch.linalg.qr(sample(5, 5, 4)).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, 5), r"embeddings are \[3, 4\] and \[3, 5\]; the Fréchet distance needs"),
        (torch.zeros(3), torch.zeros(3), r"embeddings are \[3\] and \[3\]; the Fréchet distance needs \[N, e\]"),
        (torch.zeros(3, 4), torch.zeros(1, 4), "needs at least 2 images of each set, not 3 and 1; give more"),
        (torch.full((2, 4), torch.nan), torch.zeros(2, 4), "embeddings hold NaN or infinity"),
    ],
    ids=["widths", "no rows", "too few", "not finite"],
)
def test_sets_that_do_not_fit(a, b, message):
    with pytest.raises(TideError, match=message):
        frechet_distance(a, b)

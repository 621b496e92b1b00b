"""Statistics against published values and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tide.errors import TideError
from tide.evaluation import auroc, auroc_interval, wilson_interval
from tide.evaluation.statistics import mean_interval, t_quantile


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (1, 1, 0.2065, 1.0),
    ],
    ids=["8 of 10", "none", "all", "Newcombe (1998), 81 of 263", "one of one"],
)
def test_wilson(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_solves_its_own_equation():
    """Both ends p satisfy (observed - p)^2 = z^2 p (1 - p) / n."""
    for p in wilson_interval(30, 100, z=2.5):
        assert (0.3 - p) ** 2 == pytest.approx(2.5**2 * p * (1 - p) / 100)


def test_wilson_of_no_trials_and_of_nonsense():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, n in ((11, 10), (-1, 10), (1, 0)):
        with pytest.raises(TideError, match="are not a proportion"):
            wilson_interval(successes, n)


def brute_force(scores: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The share of (positive, negative) pairs in the right order, ties counted half: O(rows^2)."""
    out = torch.full((scores.shape[1], masks.shape[1]), torch.nan, dtype=torch.float64)
    for f in range(scores.shape[1]):
        for c in range(masks.shape[1]):
            positive, negative = scores[masks[:, c], f], scores[~masks[:, c], f]
            if len(positive) and len(negative):
                pairs = positive[:, None] - negative
                out[f, c] = ((pairs > 0).double() + 0.5 * (pairs == 0)).mean()
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_auroc_is_the_share_of_ordered_pairs(rows, features, concepts, n_values, seed):
    """Few distinct values, so that most pairs tie; masks of all rows or none come up."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(n_values, (rows, features), generator=generator).float()
    masks = torch.rand(rows, concepts, generator=generator) < torch.rand(concepts, generator=generator)
    found = auroc(scores, masks)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, brute_force(scores, masks), rtol=1e-12, atol=1e-12, equal_nan=True)


def test_auroc_does_not_depend_on_how_features_are_split():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 7, generator=generator).clamp(min=0.5)  # half of the values tie
    masks = torch.rand(200, 3, generator=generator) > 0.7
    expected = brute_force(scores, masks)
    for columns in (1, 3, 7, 128):
        torch.testing.assert_close(auroc(scores, masks, columns), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(auroc(scores.half(), masks), brute_force(scores.half(), masks), rtol=1e-12, atol=0)


def test_auroc_where_it_is_not_defined():
    scores = torch.tensor([[1.0, float("nan")], [2.0, 3.0], [3.0, 1.0]])
    masks = torch.tensor([[True, True, False], [True, False, False], [True, True, False]])
    found = auroc(scores, masks)
    assert found.isnan().tolist() == [[True, False, True], [True, True, True]]
    assert found[0, 1] == 0.5


def test_auroc_of_a_perfect_and_of_a_reversed_score():
    scores = torch.tensor([[0.0, 1.0], [0.1, 0.9], [0.2, 0.8]])
    assert auroc(scores, torch.tensor([[False], [False], [True]])).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(("scores", "masks"), [((3, 2), (4, 1)), ((3,), (3, 1)), ((3, 2), (3,))])
def test_auroc_of_misshaped_input(scores, masks):
    with pytest.raises(TideError, match=r"must be \[rows, features\] and \[rows, concepts\] with the same rows"):
        auroc(torch.zeros(scores), torch.zeros(masks, dtype=torch.bool))


def variance(t: float, p: int, n: int) -> float:
    """Hanley and McNeil's (1982) from their Q1 and Q2, with (P + N) / 2 - 1 for both P - 1 and N - 1."""
    q1, q2, half = t / (2 - t), 2 * t * t / (1 + t), (p + n) / 2 - 1
    return (t * (1 - t) + half * (q1 - t * t) + half * (q2 - t * t)) / (p * n)


@pytest.mark.parametrize(("area", "p", "n"), [(0.5, 8, 8), (0.76, 20, 44), (0.9, 4, 60), (0.97, 32, 32)])
def test_the_interval_of_an_auroc_solves_its_own_equation(area, p, n):
    for end in auroc_interval(area, p, n, z=2.5):
        assert (area - end) ** 2 == pytest.approx(2.5**2 * variance(end, p, n), rel=1e-6)


def test_the_interval_at_chance_has_the_variance_of_ranks():
    """(P + N + 1) / (12 P N) for an area of 1/2, known without any approximation."""
    assert variance(0.5, 7, 30) == pytest.approx(38 / (12 * 7 * 30))
    low, high = auroc_interval(0.5, 200, 200)
    assert (low, high) == pytest.approx((0.5 - 0.0565, 0.5 + 0.0565), abs=1e-3)
    assert low + high == pytest.approx(1)


def test_a_perfect_auroc_of_few_images_is_not_certain():
    assert auroc_interval(1.0, 4, 4)[0] == pytest.approx(0.6, abs=0.06)
    assert auroc_interval(1.0, 4, 4)[1] == 1.0
    assert auroc_interval(0.0, 4, 4) == pytest.approx(tuple(1 - end for end in auroc_interval(1.0, 4, 4)[::-1]))
    assert auroc_interval(1.0, 400, 400)[0] > 0.99


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Scores of two normal distributions, whose area is known; 2000 draws of 8 and 24 images."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(32)[:, None] < 8
    for shift, area in ((0.0, 0.5), (1.5, 0.8556)):
        scores = torch.randn(32, 2000, generator=generator) + shift * mask
        found = [auroc_interval(float(each), 8, 24) for each in auroc(scores, mask)[:, 0]]
        held = sum(low <= area <= high for low, high in found) / len(found)
        assert 0.93 < held < 0.98


def test_the_interval_without_images_and_of_nonsense():
    assert auroc_interval(0.7, 0, 5) == auroc_interval(0.7, 5, 0) == (0.0, 1.0)
    for area in (-0.1, 1.1, float("nan")):
        with pytest.raises(TideError, match="is not an area under a curve"):
            auroc_interval(area, 5, 5)


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (9, 2.2622), (10, 2.2281), (28, 2.0484), (95, 1.9853)])
def test_quantiles_of_t(freedom, expected):
    assert t_quantile(freedom) == pytest.approx(expected, abs=2e-4)


def test_the_interval_of_a_mean():
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5))
    assert mean_interval([4.0]) == (-math.inf, math.inf)
    with pytest.raises(TideError, match="0 degrees of freedom"):
        t_quantile(0)

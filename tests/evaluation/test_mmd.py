"""CMMD against the dense formula in float64, and what is expected of its two estimators."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tide.errors import TideError
from tide.evaluation import cmmd, mmd


def sample(n: int, seed: int, width: int = 12, shift: float = 0.0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def dense(a: Tensor, b: Tensor, sigma: float = 10.0, *, unbiased: bool = False) -> float:
    """As the paper writes it, with all kernel values at once."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(F.normalize(x), F.normalize(y)).square() / (2 * sigma**2))

    def within(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1)) if unbiased else k.mean()

    return float(1000 * (within(kernel(a, a)) + within(kernel(b, b)) - 2 * kernel(a, b).mean()))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 2**31), st.sampled_from([0.3, 1.0, 10.0]), st.booleans())
def test_it_is_the_dense_formula(n, m, seed, sigma, unbiased):
    a, b = sample(n, seed), sample(m, seed + 1, shift=0.5)
    expected = dense(a, b, sigma, unbiased=unbiased)
    assert cmmd(a, b, sigma, unbiased=unbiased) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("unbiased", [False, True])
def test_blocks_change_nothing(monkeypatch, unbiased):
    a, b = sample(23, 1), sample(17, 2, shift=1.0)
    whole = cmmd(a, b, unbiased=unbiased)
    monkeypatch.setattr(mmd, "BLOCK", 5)
    assert cmmd(a, b, unbiased=unbiased) == pytest.approx(whole, rel=1e-12)


def test_by_hand():
    """Two equal rows against two opposite ones: all pairs within a set have the kernel 1, those between exp(-4/200)."""
    a = torch.tensor([[2.0, 0.0], [5.0, 0.0]])
    expected = 2000 * (1 - math.exp(-0.02))
    assert cmmd(a, -a) == pytest.approx(expected, rel=1e-12)
    assert cmmd(a, -a, unbiased=True) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("unbiased", [False, True])
def test_embeddings_of_zeros_have_no_direction_and_lie_at_the_origin(unbiased):
    a, b = sample(6, 1), sample(5, 2)
    a[:2] = 0
    assert cmmd(a, b, unbiased=unbiased) == pytest.approx(dense(a, b, unbiased=unbiased), rel=1e-6)


def test_lengths_of_embeddings_do_not_matter():
    a, b = sample(9, 1), sample(9, 2)
    assert cmmd(3 * a, b / 7) == pytest.approx(cmmd(a, b), rel=1e-9)


def test_samples_of_one_distribution():
    """The unbiased estimates lie about 0, on either side; the biased ones about their bias, and never below 0."""
    pairs = [(sample(20, 2 * seed), sample(20, 2 * seed + 1)) for seed in range(200)]
    unbiased = torch.tensor([cmmd(a, b, unbiased=True) for a, b in pairs], dtype=torch.float64)
    assert abs(float(unbiased.mean())) < 3 * float(unbiased.std()) / math.sqrt(200)
    assert float(unbiased.min()) < 0 < float(unbiased.max())
    biased = torch.tensor([cmmd(a, b) for a, b in pairs], dtype=torch.float64)
    # Independent rows of norm 1 are orthogonal on average: the mean of their squared distance is 2.
    assert float((biased - unbiased).mean()) == pytest.approx(1000 * (2 / 200) * (1 / 20 + 1 / 20), rel=0.02)
    assert float(biased.min()) > 0


def test_it_tells_distributions_apart():
    near, far = (cmmd(sample(50, 1), sample(50, 2, shift=shift), unbiased=True) for shift in (0.1, 1.0))
    assert 10 * abs(near) < far


def test_equal_sets_have_none():
    a = sample(40, 3).float()
    assert cmmd(a, a.flip(0)) == pytest.approx(0, abs=1e-10)


def test_sets_that_do_not_fit():
    with pytest.raises(TideError, match=r"embeddings are \[3, 4\] and \[3, 5\]; CMMD needs \[N, e\] and \[M, e\]"):
        cmmd(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(TideError, match="CMMD needs at least 2 images of each set, not 1 and 3; give more"):
        cmmd(torch.zeros(1, 4), torch.zeros(3, 4))

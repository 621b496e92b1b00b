"""The scaling law, on points whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tide.errors import TideError
from tide.studies.scaling import ScalingLaw, fit_scaling_law

TRUE = ScalingLaw(floor=0.004, alpha=1.0, beta_n=-0.3, beta_k=-0.5, gamma=-0.05, r2=1.0)
GRID = [(n, k) for n in (384, 768, 1536, 3072) for k in (16, 32, 64, 128)]


def losses(law: ScalingLaw, noise: float = 0.0) -> list[float]:
    rng = np.random.default_rng(0)
    return [law(n, k) * math.exp(noise * rng.normal()) for n, k in GRID]


@pytest.mark.parametrize("floor", [0.0, 0.004, 0.02])
def test_the_law_of_clean_points_is_found(floor):
    true = ScalingLaw(floor, TRUE.alpha, TRUE.beta_n, TRUE.beta_k, TRUE.gamma, 1.0)
    found = fit_scaling_law([n for n, _ in GRID], [k for _, k in GRID], losses(true))
    assert found.r2 > 0.9999
    assert found.floor == pytest.approx(floor, abs=5e-4)
    for n, k in GRID:
        assert found(n, k) == pytest.approx(true(n, k), rel=5e-3)
    assert found.exponent_n(32) == pytest.approx(true.exponent_n(32), rel=0.05)
    assert found.exponent_k(768) == pytest.approx(true.exponent_k(768), rel=0.05)
    # Twice beyond the grid the law still holds.
    assert found(6144, 256) == pytest.approx(true(6144, 256), rel=0.05)


def test_the_law_of_noisy_points_is_close():
    found = fit_scaling_law([n for n, _ in GRID], [k for _, k in GRID], losses(TRUE, noise=0.03))
    assert 0.97 < found.r2 < 1
    for n, k in GRID:
        assert found(n, k) == pytest.approx(TRUE(n, k), rel=0.1)


@pytest.mark.parametrize(
    ("n", "k", "loss", "message"),
    [
        ([1, 2, 3, 4], [1, 2, 1, 2], [1.0] * 4, "4 points of 4 n and 2 k do not fix a scaling law"),
        ([5] * 6, [1, 2, 3, 4, 5, 6], [1.0] * 6, "6 points of 1 n and 6 k"),
        ([1, 2, 3, 4, 5], [1, 2, 1, 2, 1], [1.0, 1.0, 0.0, 1.0, 1.0], "positive finite losses"),
        ([1, 2, 3, 4, 5], [1, 2, 1, 2, 1], [1.0, 1.0, math.nan, 1.0, 1.0], "positive finite losses"),
    ],
)
def test_points_that_fix_no_law(n, k, loss, message):
    with pytest.raises(TideError, match=message):
        fit_scaling_law(n, k, loss)

"""The scaling law, the orderings, interpolation at one L0, means and tables: on numbers whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tide.errors import TideError
from tide.studies.ablation import differs
from tide.studies.fig4 import l0_at
from tide.studies.matched import at_l0
from tide.studies.orderings import HELD, PAPER, count_ahead, in_words, paper_orderings
from tide.studies.scaling import ScalingLaw, fit_scaling_law
from tide.tables import mean, spread, with_spread, write_csv

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


def as_in_the_paper(seeds: int = 5) -> dict[str, dict[str, list[float]]]:
    return {name: {metric: [value] * seeds for metric, value in row.items()} for name, row in PAPER.items()}


def test_the_papers_own_numbers_hold_all_its_orderings():
    orderings = paper_orderings(as_in_the_paper())
    # Of 24 pairs three are ties: SAE(sample) and TIDE(sample) in training MSE, TIDE and TIDE(sample) in validation
    # MSE, SAE(sample) and TIDE in training cosine.
    assert len(orderings) == 21
    assert all(o.held and o.agree == o.seeds == 5 for o in orderings)
    assert in_words(orderings) == (
        "21 of the paper's 21 orderings hold (5 of 5 in training MSE, 5 of 5 in training cosine, "
        "5 of 5 in validation MSE, 6 of 6 in validation cosine)"
    )
    assert str(orderings[0]) == "training MSE: SAE(sample) < SAE holds (5 of 5)"


@pytest.mark.parametrize(("agree", "held"), [(5, True), (4, True), (3, False), (0, False)])
def test_an_ordering_holds_from_four_seeds_of_five(agree, held):
    assert HELD == 0.8
    figures = as_in_the_paper()
    figures["TIDE"]["val_mse"] = [0.1 if seed >= agree else 0.001 for seed in range(5)]
    found = {(o.metric, o.better, o.worse): o for o in paper_orderings(figures)}["val_mse", "TIDE", "SAE"]
    assert found.agree == agree
    assert found.held is held
    assert str(found).endswith(f"TIDE < SAE {'holds' if held else 'does not hold'} ({agree} of 5)")


def test_what_is_equal_is_not_ahead():
    assert count_ahead("val_mse", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == 1
    assert count_ahead("val_cosine", [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == 1


def test_a_power_of_l0_is_read_off_between_two_runs():
    """What falls as a power must come out the same whether a run lies at the target or on either side of it."""
    l0 = [60.0, 12.0, 26.0]
    assert at_l0(l0, [x**-1.5 for x in l0], 32) == pytest.approx(32**-1.5)
    assert at_l0(l0, [x**-1.5 for x in l0], 26) == pytest.approx(26**-1.5)


def test_what_cannot_be_read_off_at_one_l0():
    l0, values = [64.0, 16.0, 4.0], [3.0, 2.0, 1.0]
    assert at_l0(l0, values, 65) is None
    assert at_l0(l0, values, 3.9) is None
    assert at_l0([64.0, 16.0, 0.0], [3.0, math.nan, 1.0], 32) is None
    assert at_l0([], [], 4) is None
    assert at_l0([4.0, 64.0], [1.0, -1.0], 16) == pytest.approx(0.0)  # no logarithm: half way in ln L0


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ([1.2, 1.3, 1.4], 1),  # above in every seed, by about as much
        ([0.8, 0.9, 1.0], -1),
        ([1.2, 1.3, 1.1], 0),  # below in one
        ([1.01, 1.11, 3.0], 0),  # above in every seed, but by what one seed alone makes of it
    ],
)
def test_a_difference_is_one_of_every_seed(variant, expected):
    assert differs(variant, [1.0, 1.1, 1.2]) == expected


def test_the_l0_of_a_bin_of_timesteps():
    bins = {"0-100": 20.0, "100-200": 30.0}
    assert [l0_at(bins, t) for t in (0.0, 99.5, 100.0)] == [20.0, 20.0, 30.0]
    assert math.isnan(l0_at(bins, 999.0))


def test_mean_and_spread():
    assert (mean([1.0, 3.0]), spread([1.0, 3.0])) == (2.0, pytest.approx(math.sqrt(2)))
    assert spread([5.0]) == 0.0
    assert math.isnan(mean([]))
    assert with_spread([1.0, 3.0], 1) == "2.0 ± 1.4"


def test_csv(tmp_path):
    write_csv(tmp_path / "t.csv", [{"model": "a, b", "value": 1.5}, {"model": "c", "value": None}])
    assert (tmp_path / "t.csv").read_text() == 'model,value\n"a, b",1.5\nc,\n'

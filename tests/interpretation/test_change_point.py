"""Breaks of curves."""

from __future__ import annotations

import numpy as np
import pytest

from tide.errors import TideError
from tide.interpretation.change_point import change_point, settles_at


@pytest.mark.parametrize("at", [3, 9, 16], ids=["as early as can be", "in the middle", "late"])
def test_the_break_of_two_lines(at):
    x = np.arange(20.0)
    curve = np.where(x < at, 0.2 * x, 5 - 0.1 * x)
    found = change_point(curve)
    assert found.index == at
    assert found.strength == pytest.approx(1.0)


def test_a_step_in_noise_is_found_and_a_line_in_noise_is_weak():
    noise = 0.05 * np.random.default_rng(0).normal(size=19)
    step = change_point(noise + (np.arange(19) >= 12))
    assert step.index == 12
    assert step.strength > 0.9
    assert change_point(noise + 0.3 * np.arange(19)).strength < 0.6


def test_a_line_has_no_break():
    assert change_point(np.linspace(3, 7, 12)).strength == 0.0
    assert change_point([2.5] * 8).strength == 0.0


@pytest.mark.parametrize("values", [[1.0] * 5, [1, 2, 3, np.nan, 5, 6, 7]], ids=["too short", "not finite"])
def test_curves_without_an_answer(values):
    with pytest.raises(TideError, match="a break needs 6 finite values or more"):
        change_point(values)


def test_settling():
    assert settles_at([False, True, False, True, True]) == 3
    assert settles_at([True, True]) == 0
    assert settles_at([True, False]) is None
    assert settles_at([]) is None

"""Dips of curves, and from when on something holds."""

from __future__ import annotations

import numpy as np
import pytest

from tide.errors import TideError
from tide.interpretation.abrupt_change import abrupt_change, settles_at


@pytest.mark.parametrize("at", [1, 9, 17], ids=["as early as can be", "in the middle", "as late as can be"])
def test_a_dip(at):
    curve = np.ones(19)
    curve[at] = 0.5
    found = abrupt_change(curve)
    assert (found.index, found.strength) == (at, 1.0)


def test_the_deepest_dip_counts_from_its_lower_rim():
    """3 lies 3 below its lower rim, the 6; 4 lies lower than its neighbours, but 2 below its own."""
    found = abrupt_change([6.0, 3.0, 9.0, 4.0, 6.0, 1.0])
    assert found.index == 1
    assert found.strength == pytest.approx(3 / 8)


def test_a_fall_up_to_the_end_is_no_dip():
    """The lowest value is the last one; the dip before it is what changes and settles again."""
    found = abrupt_change([1.0, 0.9, 0.7, 0.8, 0.95, 0.9, 0.5])
    assert found.index == 2
    assert found.strength == pytest.approx(0.25 / 0.5)


@pytest.mark.parametrize(
    "curve", [[3, 4, 5, 6], [6, 5, 4, 3], [2.5] * 8, [1, 3, 2]], ids=["rises", "falls", "level", "a hill"]
)
def test_curves_without_a_dip(curve):
    assert abrupt_change(curve) is None


@pytest.mark.parametrize("values", [[1.0] * 2, [1, 2, 3, np.nan, 5, 6, 7]], ids=["too short", "not finite"])
def test_curves_without_an_answer(values):
    with pytest.raises(TideError, match="a change needs 3 finite values or more"):
        abrupt_change(values)


def test_settling():
    assert settles_at([False, True, False, True, True]) == 3
    assert settles_at([True, True]) == 0
    assert settles_at([True, False]) is None
    assert settles_at([]) is None

"""Edits compared at equal preservation and task by task, autoencoders at one L0."""

from __future__ import annotations

import math

import pytest

from tide.scenes.scene import Scene
from tide.studies.compare import LEVELS, at_l0, at_preservation, best, equal_preservation, paired
from tide.studies.tasks import EditOutcome, EditTask

SCENE = Scene("cube", "white", "far", "with", "sand", seed=3)
TASK = EditTask(SCENE, SCENE.caption(), 5, "class", "tree")


def outcome(changed: bool, kept: bool) -> EditOutcome:
    return EditOutcome(TASK, changed, kept, valid=True)


def point(factor: float, success: float, preserved: float) -> dict:
    interval = {"success": [success - 0.1, success + 0.1]}
    return {"factor": factor, "success": success, "preserved": preserved, "both": success, "interval": interval}


def test_at_a_level_the_point_that_changes_most_counts():
    curve = [point(1, 0.2, 1.0), point(2, 0.7, 0.9), point(3, 0.9, 0.6), point(4, 0.5, 0.2)]
    assert at_preservation(curve, 0.9) == curve[1]
    assert at_preservation(curve, 0.5) == curve[2]
    assert at_preservation(curve[2:], 0.9) is None
    table = equal_preservation({"contrast": curve, "steer contrast": curve[2:]})
    assert [float(level) for level in table] == list(LEVELS)
    first = {"success": 0.2, "preserved": 1.0, "interval": [0.1, 0.30000000000000004], "factor": 1}
    assert table["0.95"]["contrast"] == first
    assert table["0.95"]["steer contrast"] == {"success": 0.0, "factor": None}
    assert table["0.5"]["contrast"]["factor"] == 3


def test_strengths_are_chosen_on_development_prompts():
    test = [point(1, 0.2, 1.0), point(2, 0.7, 0.7), point(3, 0.9, 0.96)]
    dev = [point(1, 0.3, 1.0), point(2, 0.6, 0.97), point(3, 0.9, 0.6)]
    found = equal_preservation({"contrast": test}, {"contrast": dev})
    assert found["0.95"]["contrast"]["factor"] == 2
    assert (found["0.95"]["contrast"]["success"], found["0.95"]["contrast"]["preserved"]) == (0.7, 0.7)
    assert found["0.5"]["contrast"]["factor"] == 3


def test_pairs_count_what_only_one_method_does():
    yes, no, half = outcome(True, True), outcome(False, True), outcome(True, False)
    found = paired([yes, yes, yes, yes, yes, no, half, yes], [no, half, no, no, no, yes, no, yes])
    assert (found["only_ours"], found["only_theirs"], found["images"]) == (5, 1, 8)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 64)
    assert paired([yes], [yes])["p"] == 1.0


def test_the_best_setting_changes_and_keeps_then_changes_more():
    kept, nothing, changed, both = ((0, 0, 1), (0, 0, 0), (0, 1, 0), (1, 1, 1))
    found = {
        factor: dict(zip(("both", "success", "preserved"), figures, strict=True))
        for factor, figures in {1.0: kept, 2.0: nothing, 3.0: changed, 4.0: both, 5.0: both}.items()
    }
    assert best([1.0, 2.0, 3.0], found.__getitem__) == 3.0
    assert best([2.0, 1.0], found.__getitem__) == 1.0
    assert best([1.0, 2.0, 3.0, 4.0, 5.0], found.__getitem__) == 4.0  # of equal ones the first


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

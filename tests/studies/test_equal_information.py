"""Where to edit: what is read off the numbers, on numbers made for it."""

from __future__ import annotations

import pytest

from tide.studies import bank, where
from tide.studies.equal_information import KINDS, LATENTS, RAW, WHERE, Point, at_level, verdict_of
from tide.studies.methods import METHODS
from tide.studies.placed import LATENTS_THERE
from tide.studies.tasks import EditOutcome, tasks_of
from tide.studies.trial import PROMPT

TASKS = tasks_of("test", 10, 0)
GROUPS = where.GROUPS | bank.GROUPS
GROUP = GROUPS["one image"]


def test_contenders_know_the_same():
    for known, group in GROUPS.items():
        assert {METHODS[name].knows for name in group.methods} == {known}
        assert group.ours in group.contenders[WHERE]
        assert len(set(group.methods)) == len(group.methods)
        assert 3 * group.sizes.test >= 400


def point(method: str, factor: float, dev: tuple[float, float], test: tuple[int, int]) -> Point:
    """Shares changed and kept on development prompts; of ten held-out images the first ones are changed and kept."""
    changed, kept = test
    outcomes = [EditOutcome(task, i < changed, i < kept, True) for i, task in enumerate(TASKS)]
    return Point(method, factor, {"success": dev[0], "preserved": dev[1]}, outcomes)


POINTS = [
    point(LATENTS_THERE, 0.1, (0.2, 0.95), (1, 9)),
    point(LATENTS_THERE, 0.7, (0.9, 0.85), (8, 8)),
    point("steer bounded", 0.1, (0.0, 1.0), (0, 10)),
    point("steer contrast", 1.0, (0.9, 0.75), (9, 7)),
    point("contrast", 1.0, (0.5, 0.6), (5, 6)),
]


def test_strengths_are_chosen_on_development_prompts_and_measured_on_others():
    found = at_level(POINTS, GROUP, 0.8, KINDS[0])
    assert found[WHERE]["factor"] == 0.7
    assert (found[WHERE]["success"], found[WHERE]["preserved"], found[WHERE]["share"]) == (0.8, 0.8, 1.0)
    assert (found[RAW]["factor"], found[RAW]["success"]) == (0.1, 0.0)
    # No strength keeps as much: nothing is edited.
    assert found[LATENTS]["method"] is None
    assert (found[LATENTS]["success"], found[LATENTS]["preserved"]) == (0.0, 1.0)
    assert found[RAW]["ahead"]["mean"] == pytest.approx(0.8)


def test_the_interval_is_that_of_the_same_images():
    """Eight and nine of ten are changed, and one is by only one of the two: Student's interval of nine zeros and -1."""
    ahead = at_level(POINTS, GROUP, 0.7, KINDS[0])[RAW]["ahead"]
    assert ahead["mean"] == pytest.approx(-0.1)
    half = 2.2622 * (0.1 * 0.9 * 10 / 9 / 10) ** 0.5  # t of 9 degrees of freedom
    assert ahead["interval"] == pytest.approx((-0.1 - half, -0.1 + half), abs=1e-4)


def test_part_of_the_images_may_be_left_as_they_are():
    """At 0.9, editing 2 of 3 images loses 0.15 * 2 / 3 = 0.1 of them, and 0.1 / 0.25 = 0.4 everywhere."""
    found = at_level(POINTS, GROUP, 0.9, KINDS[1])
    assert found[WHERE]["factor"] == 0.7
    assert found[WHERE]["share"] == pytest.approx(2 / 3)
    assert found[WHERE]["success"] == pytest.approx(0.8 * 2 / 3)
    assert found[WHERE]["preserved"] == pytest.approx(1 - 0.2 * 2 / 3)
    assert found[RAW]["share"] == pytest.approx(0.4)
    assert found[RAW]["success"] == pytest.approx(0.36)


def test_the_sentence_is_of_its_numbers():
    levels = {f"{level:g}": {kind: at_level(POINTS, GROUP, level, kind) for kind in KINDS} for level in (0.9, 0.7)}
    row = {"images": 100, "valid": 1.0}
    chosen = {
        LATENTS_THERE: {**row, "success": 0.8, "preserved": 0.85, "both": 0.75},
        "steer bounded": {"both": 0.6},
        "steer contrast": {"both": 0.7},
        "contrast": {"both": 0.65},
        PROMPT: {"both": 0.95},
    }
    against = {PROMPT: {"interval": (-0.3, -0.1)}}
    # By strength: at 0.9 ahead of both (1, 0 and 0 of ten), at 0.7 behind (8 against 9). With a share of the images the
    # same.
    assert verdict_of(GROUP, {"levels": levels, "both_against": against, "chosen": chosen}) == (
        "contrast of latents where they differ: 80.0% of 100 images changed, all else kept in 85.0%, both 75.0% (raw "
        "everywhere 70.0%; latents everywhere 65.0%; the prompt replaced 95.0%, ours less that -30.0% to -10.0%), a "
        "scene in 100.0%; above raw and latents everywhere at 1 of 2 levels of preservation by strength, and at 1 "
        "where each may leave images as they are."
    )

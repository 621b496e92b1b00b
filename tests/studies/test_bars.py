"""The bars: verdicts in words, and what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from tide.errors import TideError
from tide.studies.bars import EDITS, edit_verdicts, reproduce
from tide.studies.compare import equal_preservation
from tide.studies.options import Options


def curve(*points: tuple[float, float, float]) -> list[dict]:
    interval = {"success": [0.0, 1.0]}
    return [
        {"factor": f, "success": changed, "preserved": kept, "both": min(changed, kept), "interval": interval}
        for f, changed, kept in points
    ]


def judged(ours: list[dict], theirs: list[dict]) -> list[str]:
    curves = {name: theirs for name in EDITS} | {"contrast": ours}
    chosen = {
        name: {**next(point for point in points if point["factor"] == 1.5), "factor": [1.5]}
        for name, points in curves.items()
    }
    return edit_verdicts(equal_preservation(curves), chosen)


def test_a_bar_is_met_ahead_at_some_level_and_behind_at_none():
    lines = judged(curve((1.0, 0.3, 0.95), (1.5, 0.9, 0.9)), curve((1.0, 0.3, 0.95), (1.5, 0.8, 0.85)))
    assert lines[0].startswith(
        "met     contrast of latents above contrast, raw at equal preservation: ahead at 4 of 5 levels"
    )
    assert (
        "behind at 0; at the strengths chosen 90.0% changed, 90.0% kept, 90.0% both against 80.0% changed, 85.0% kept"
        in lines[0]
    )
    assert lines[2].startswith("MISSED  global replacement above replacement, raw")  # the same curve: ahead nowhere
    assert lines[-1].startswith("met     80 % changed with 80 % kept")
    assert "(1.5) changes 90.0% and keeps 90.0%" in lines[-1]
    lines = judged(curve((1.0, 0.2, 0.95), (1.5, 0.9, 0.7)), curve((1.0, 0.3, 0.95), (1.5, 0.8, 0.85)))
    assert lines[0].startswith("MISSED  contrast of latents above contrast, raw")
    assert "behind at 3" in lines[0]
    assert lines[-1].startswith("MISSED")


def test_the_bars_need_a_checkpoint():
    with pytest.raises(TideError, match="the bars measure a checkpoint; give its folder with --sae"):
        reproduce(Options(Path("x")))


@pytest.mark.parametrize("name", ["prompts", "edit_prompts"])
def test_counts_are_positive(name):
    with pytest.raises(TideError, match=f"--{name.replace('_', '-')} 0 is too few; give at least 1"):
        Options(Path("x"), **{name: 0})

"""The bars: verdicts in words, and going on where an evaluation was interrupted."""

from __future__ import annotations

import pytest

from tide.errors import TideError
from tide.files import read_json, write_json, write_sealed
from tide.studies.bars import _earlier, edit_verdicts
from tide.studies.edit_study import STRENGTHS
from tide.studies.levels import equal_preservation

NOW = {
    "checkpoint": "runs/tide",
    "sae": {"k": 8, "centre": False},
    "weights": "0a",
    "config": {"seed": 0, "sizes": {"blocks": (0, 1)}},
}


def curve(*points: tuple[float, float, float]) -> list[dict]:
    interval = {"success": [0.0, 1.0]}
    return [
        {"factor": f, "success": changed, "preserved": kept, "both": min(changed, kept), "interval": interval}
        for f, changed, kept in points
    ]


def figures(ours: list[dict], theirs: list[dict]) -> dict:
    curves = {name: theirs for name in STRENGTHS} | {"contrast": ours, "towards": theirs, "swap": theirs}
    return {
        "trade_off": curves,
        "equal_preservation": equal_preservation(curves),
        "edit_sweep": {"chosen": {name: {"factor": 1.5} for name in curves}},
    }


def test_a_bar_is_met_ahead_at_some_level_and_behind_at_none():
    better = figures(curve((1.0, 0.3, 0.95), (1.5, 0.9, 0.9)), curve((1.0, 0.3, 0.95), (1.5, 0.8, 0.85)))
    lines = edit_verdicts(better)
    assert lines[0].startswith("met     contrast above steer contrast at equal preservation: ahead at 4 of 5 levels")
    assert (
        "behind at 0; at the strengths chosen 90.0% changed, 90.0% kept, 90.0% both, against 80.0%, 85.0%, 80.0%"
        in lines[0]
    )
    assert lines[2].startswith("MISSED  towards above steer towards")  # the same curve: ahead nowhere
    assert lines[-1].startswith("met     80 % changed with 80 % kept")
    mixed = figures(curve((1.0, 0.2, 0.95), (1.5, 0.9, 0.7)), curve((1.0, 0.3, 0.95), (1.5, 0.8, 0.85)))
    lines = edit_verdicts(mixed)
    assert lines[0].startswith("MISSED  contrast above steer contrast")
    assert "behind at 3" in lines[0]
    assert lines[-1].startswith("MISSED")


def test_an_interrupted_evaluation_goes_on(tmp_path):
    assert _earlier(tmp_path, NOW) == {}
    write_sealed(tmp_path / "metrics.json", {**NOW, "agreement": {"class": 1.0}})
    assert _earlier(tmp_path, NOW)["agreement"] == {"class": 1.0}
    older = {name: value for name, value in NOW["sae"].items() if name != "centre"}  # which was off
    write_json(tmp_path / "metrics.json", {**NOW, "sae": older, "agreement": {"class": 1.0}})
    assert _earlier(tmp_path, NOW)["agreement"] == {"class": 1.0}
    with pytest.raises(TideError, match="another sae"):
        _earlier(tmp_path, {**NOW, "sae": {**NOW["sae"], "centre": True}})
    with pytest.raises(TideError, match="holds an evaluation of another config; use another folder or leave --resume"):
        _earlier(tmp_path, {**NOW, "config": {"seed": 1}})
    with pytest.raises(TideError, match="another checkpoint"):
        _earlier(tmp_path, {**NOW, "checkpoint": "runs/other"})
    with pytest.raises(TideError, match="another training"):  # into the same folder
        _earlier(tmp_path, {**NOW, "weights": "0b"})


def test_an_evaluation_that_was_changed_does_not_go_on(tmp_path):
    """Its figures have many shapes: a checksum tells that they are as they were written."""
    path = tmp_path / "metrics.json"
    for change in ({"agreement": 1}, {"sha256": "0"}):
        write_sealed(path, {**NOW, "agreement": {"class": 1.0}})
        write_json(path, read_json(path) | change)
        with pytest.raises(TideError, match=r"metrics\.json .* checksum.*; use another folder or leave --resume off"):
            _earlier(tmp_path, NOW)
    write_json(path, [])
    with pytest.raises(TideError, match="must be an object"):
        _earlier(tmp_path, NOW)

"""A plan beside a real collection and training on this machine."""

from __future__ import annotations

import pytest

from benchmarks import planning_check


def test_ratios_are_medians_of_rounds():
    rounds = [
        {"planned": {"collection": c, "training": 2.0}, "real": {"collection": 2.0, "training": 4.0}} for c in (1, 2, 9)
    ]
    assert planning_check.ratios(rounds) == pytest.approx({"collection": 1, "training": 0.5, "total": 4 / 6})


@pytest.mark.slow
def test_a_plan_is_close_to_a_real_run(tmp_path, monkeypatch):
    """The aim is a factor of 1.5; other work on the machine may slow one of the two alone, so the bar is 2."""
    monkeypatch.chdir(tmp_path)
    off = planning_check.ratios(planning_check.compared(images=128, epochs=4, rounds=3))
    assert 0.5 < off["total"] < 2, off

"""Times and peaks of memory."""

from __future__ import annotations

import pytest
import torch

from benchmarks import measure

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("changes", "extra", "total"),
    [
        ([100, -100], 100, 100),
        ([100, 40, -100], 100, 140),  # 40 stay: the result
        ([-50, 50, 30, -30], 30, 30),  # old gradients go, new ones come
        ([], 0, 0),
    ],
)
def test_peak_leaves_out_what_the_run_leaves_behind(changes, extra, total):
    assert measure._peak_of(changes) == measure.Peak(extra, total)


def test_peak_of_a_run():
    kept = []
    found = measure.peak(lambda: kept.append((torch.ones(1000) + 1)[:1].clone()), CPU)
    assert 8000 <= found.extra <= 8100


def test_runs_are_interleaved_and_prepared():
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = measure.interleaved(runs, CPU, repetitions=2, warmup=1, before={"b": lambda: calls.append("before b")})
    assert calls == ["a", "before b", "b"] * 3
    assert len(timings["a"].seconds) == 2


def test_timing():
    timing = measure.Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.spread == pytest.approx(2 / 3)

"""Fixtures of the benchmarks, and the table at the end.

A benchmark stores in ``extra_info`` what its time is compared with: ``name``, ``kind`` ("ours" or "peer"),
``floor_seconds``, ``peak_extra_bytes`` and ``gate_error``. Within a group, all are compared with the fastest peer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.table import markdown, megabytes, milliseconds, percent, ratio


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _measured(config: pytest.Config) -> list[Any]:
    session = getattr(config, "_benchmarksession", None)
    return [b for b in getattr(session, "benchmarks", []) if b.stats.rounds and "kind" in b.extra_info]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Adds what depends on the whole group, before the JSON is written."""
    for benchmark in _measured(session.config):
        median, extra = benchmark.stats.median, benchmark.extra_info
        rivals = {
            b.extra_info["name"]: b.stats.median
            for b in _measured(session.config)
            if b.group == benchmark.group and b.extra_info["kind"] == "peer" and b is not benchmark
        }
        if extra.get("floor_seconds"):
            extra["share_of_floor"] = extra["floor_seconds"] / median
        if rivals:
            extra["best_peer"] = min(rivals, key=lambda name: rivals[name])
            extra["times_faster_than_best_peer"] = rivals[extra["best_peer"]] / median


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = []
    for benchmark in sorted(_measured(config), key=lambda b: (b.group, b.stats.median)):
        extra = benchmark.extra_info
        rows.append(
            [
                benchmark.group,
                extra["name"],
                milliseconds(benchmark.stats.median),
                megabytes(extra.get("peak_extra_bytes")),
                percent(extra.get("share_of_floor")),
                ratio(extra.get("times_faster_than_best_peer")),
                extra.get("best_peer", ""),
            ]
        )
    if rows:
        header = ["what", "by", "median ms", "extra MB", "share of floor", "x best peer", "best peer"]
        terminalreporter.write_sep("=", "figures that passed their gate")
        terminalreporter.write_line(markdown(header, rows))

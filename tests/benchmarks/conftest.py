"""Running stages of gpu-check in this process, and its command with faults planted in its workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environment import ROOT
from benchmarks.gpu import driver, record, worker

CALL = {"date": "2026-01-02", "commit": "abc", "device": "CPU"}


@pytest.fixture
def run_stage(tmp_path) -> Callable[..., dict[str, Any]]:
    """Runs a stage at toy sizes, in this process. Returns its entry in the record."""

    def run(name: str, call: int = 0, seconds: float = 300) -> dict[str, Any]:
        path = tmp_path / "check.json"
        found = record.load(path)
        found["calls"] = [CALL] * (call + 1)
        record.save(path, found)
        options = ["--record", str(path), "--call", str(call), "--deadline", str(time.monotonic() + seconds)]
        worker.main(["--stage", name, *options, "--dry-run"])
        return json.loads(path.read_text())["stages"][name]

    return run


@pytest.fixture
def planted(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Makes workers run the given lines first. Returns the script that does so."""

    def plant(lines: str) -> Path:
        script = tmp_path / "worker.py"
        start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom benchmarks.gpu import worker\n"
        end = "\nworker.end_with_the_driver()\nsys.exit(worker.main())\n"
        script.write_text(start + lines + end)
        monkeypatch.setattr(driver, "WORKER", (str(script),))
        return script

    return plant

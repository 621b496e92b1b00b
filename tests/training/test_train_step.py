"""``python -m benchmarks.train_step`` at toy sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = ["--latents", "64", "--k", "4", "--tokens", "128", "--width", "16", "--repetitions", "1"]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (["--against", str(ROOT)], ["loss in the step", "(step - loss) / AdamW", "step / step of the other"]),
        (["--store", "--steps", "3", "--rows", "2048"], ["step from memory", "speed from the store"]),
    ],
    ids=["step", "store"],
)
def test_prints_and_writes_its_figures(options, lines, tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.train_step", *TOY, *options, "--runs", "2", "--out", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for line in lines:
        assert done.stdout.count(line) == 2
    written = json.loads(file.read_text())
    assert len(written["runs"]) == 2
    assert all(line in run for line in lines for run in written["runs"])
    assert [bar["bar"] for bar in written["bars"]] == ([] if "--store" in options else [1.25, 1.25])

"""Damaged and lying files of every kind: each is read, or refused in one line, soon and in little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("limits memory and time as Linux does", allow_module_level=True)

from tests.helpers.file_kinds import KINDS
from tests.helpers.fuzz import fault, sampled


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.quick])
def test_some_damaged_files(tmp_path, name):
    good, trap = tmp_path / "good", tmp_path / "trap"
    cases = sampled(KINDS[name], good, trap, n_cases=16, seed=0)
    found = {case.name: fault(KINDS[name], good, trap, case) for case in cases}
    assert {case: what for case, what in found.items() if what is not None} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files(name):
    """In a process of its own, which may crash: the last case that it names is the culprit."""
    seed = os.environ.get("TIDE_FUZZ_SEED", "1")
    command = [sys.executable, "-m", "tests.helpers.fuzz", name, "150", seed]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1800)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("fault ")] == []
    assert lines[-1] == "done", f"{lines[-1]}, exit status {done.returncode}: {done.stderr[-2000:]}"
    assert sum(line.startswith("case ") for line in lines) > 50

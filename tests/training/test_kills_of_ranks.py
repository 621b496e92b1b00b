"""Ranks that are killed with -9 at random moments: nothing is lost, and what is resumed ends with the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", [1])
def test_killed_ranks_resume_with_the_same_bits(tmp_path, seed):
    """One rank or all of them, whenever or in a checkpoint, in every way to divide the work."""
    command = [sys.executable, "-m", "tests.helpers.kill_ranks", str(tmp_path), "12", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["kills"] >= 12
    for trial in found["trials"]:
        assert (trial["same"], trial["codes"], trial["leftovers"]) == (True, [0, 0], []), trial
        assert not trial["hung"], trial  # whoever remains ends by itself

"""Signals to the ranks of a training: all end after the same step, its state is saved, and resuming loses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

#: What each rank says last: its number, and the step whose state is kept.
LINE = re.compile(
    r"tide: interrupted; rank ([01]) of 2: the (?:state|checkpoint|blocks' checkpoints) of step (\d+) (?:is|are) kept; "
    "rerun with resume to continue"
)
MODES = pytest.mark.parametrize("mode", ["data parallel", "block parallel"])


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("signals")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.helpers.signal_ranks", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def check(trial: dict[str, Any]) -> None:
    lines = [line for text in trial["said"] for line in text.splitlines() if line.startswith("tide: ")]
    last = [match for line in lines if (match := LINE.fullmatch(line))]
    assert sorted(match[1] for match in last) == ["0", "1"], lines  # a line each
    (step,) = {int(match[2]) for match in last}
    assert 40 <= step < 120
    others = [line for line in lines if not LINE.fullmatch(line)]
    assert all("warning" in line and "the channels' means" in line for line in others), others  # of the data alone
    assert (trial["resumed"], trial["same"]) == ([0, 0], True)


@MODES
def test_sigterm_to_one_rank(found, mode):
    check(found[mode]["SIGTERM to one rank"])
    assert found[mode]["SIGTERM to one rank"]["codes"] == [143, 143]


@MODES
def test_ctrl_c_in_a_terminal_reaches_all_ranks(found, mode):
    check(found[mode]["SIGINT to all ranks"])
    assert found[mode]["SIGINT to all ranks"]["codes"] == [130, 130]


@MODES
def test_sigterm_to_torchrun(found, mode):
    """Which ends with a status and a traceback of its own."""
    check(found[mode]["SIGTERM to torchrun"])
    assert found[mode]["SIGTERM to torchrun"]["codes"] == [1]


def test_a_rank_that_is_still_saving_when_another_has_ended(found):
    check(found["block parallel"]["SIGTERM passed on"])
    assert found["block parallel"]["SIGTERM passed on"]["codes"] == [143, 143]

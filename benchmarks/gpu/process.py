"""Running one stage as a process of its own, with a limit, its output in a file."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.environment import ROOT
from benchmarks.table import replace

KEPT_FIRST, KEPT_LAST = 2**18, 2**20  # bytes of a stage's output that the log keeps


def run(command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str]) -> int | None:
    """Runs a command in a process group of its own. Returns its exit code, or None if it was killed at its limit.

    The whole group is killed at the end, children that still run included. The command's standard input is a pipe that
    closes when this process ends, however it ends.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        # A group, not a session: who kills this process's session means its stages too.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        try:
            return process.wait(timeout=max(seconds, 0))
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(process)
            shorten(log, begin)


def _kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # all of them ended; macOS says so with the latter
        pass
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:  # the driver holds on to it; the next stage need not wait
        pass
    if process.stdin is not None:
        process.stdin.close()


def shorten(log: Path, begin: int) -> None:
    """Leaves out the middle of what was written from the byte ``begin`` on, if it is long."""
    written = log.stat().st_size - begin
    if written <= KEPT_FIRST + KEPT_LAST:
        return
    content = log.read_bytes()
    kept = content[: begin + KEPT_FIRST], content[-KEPT_LAST:]
    left_out = f"\n... {written - KEPT_FIRST - KEPT_LAST} bytes are left out ...\n"
    replace(log, left_out.join(part.decode(errors="replace") for part in kept))

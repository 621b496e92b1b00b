"""What a stage measures with: the device, the shapes, and units of work of which each may fail alone."""

from __future__ import annotations

import faulthandler
import gc
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import ROOT
from benchmarks.gpu import record as records
from benchmarks.gpu.bench import Bench
from benchmarks.table import Bar, figure_table

LEAST = 10.0  # seconds that have to be left for another unit
ERROR_LENGTH = 400

Figures = dict[str, dict[str, Any]]


class DeviceLost(RuntimeError):
    """The device does not answer any more; only another process can go on."""


@dataclass
class Unit:
    """The results of one unit of work."""

    figures: Figures = field(default_factory=dict)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        return {"figures": self.figures, "bars": [bar.record() for bar in self.bars], "notes": self.notes}


def one_line(error: BaseException) -> str:
    """An error as one line, as tables and lists need it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:ERROR_LENGTH]


class Check(Bench):
    """One stage's run, in this process.

    Args:
        path: the record's file.
        name: the stage's.
        call: the number of this call in the record.
        deadline: when the stage's process is killed, by `time.monotonic`.
        unit_seconds: the most that one unit may take; then this process ends.
    """

    def __init__(
        self, path: Path, name: str, *, call: int, dry_run: bool, deadline: float, unit_seconds: float
    ) -> None:
        super().__init__(dry_run)
        self.path, self.name, self.call = path, name, call
        self.deadline, self.unit_seconds = deadline, unit_seconds
        self.record = records.load(path)
        self.entry = records.stage(self.record, name)

    def unit(self, title: str, measure: Callable[[Unit], None]) -> None:
        """Runs ``measure`` and saves what it found. Whatever it raises is recorded and costs only this unit.

        A unit that was finished before, or failed already in this call, is not run again.

        Raises:
            DeviceLost: the device does not answer after an error.
        """
        done = self.entry["units"].get(title)
        if done is not None and ("error" not in done or done["call"] == self.call):
            return
        if self.left() < LEAST:
            self.entry["units"][title] = Unit().record() | {"call": self.call, "error": records.NO_TIME}
            return self.save()
        print(f"\n-- {title} ({self.left():.0f} s left)", flush=True)
        unit, begin = Unit(), time.monotonic()
        error = self._guarded(title, lambda: measure(unit))
        found = unit.record() | {"call": self.call, "seconds": time.monotonic() - begin}
        alive = self._cleared()
        if not alive:
            error = error or "the device does not answer any more"
        if error is not None:
            found["error"] = error
        self.entry["units"][title] = found
        self.entry.pop("running", None)
        self.save()
        print("\n".join([figure_table(unit.figures)] * bool(unit.figures) + unit.notes), flush=True)
        if not alive:
            raise DeviceLost(error)

    def _guarded(self, title: str, run: Callable[[], None]) -> str | None:
        """Runs a unit within its limit. Returns its error in one line."""
        limit = min(self.unit_seconds, self.left())
        self.entry["running"] = {"title": title, "since": time.time(), "limit": limit}
        self.save()
        # Ends the process, and shows where it was, even if Python does not get to run any more.
        faulthandler.dump_traceback_later(limit, exit=True, file=2)
        try:
            run()
        except Exception as error:  # a unit's failure must not lose the others
            traceback.print_exc()
            return one_line(error)  # not the error itself, whose frames keep the unit's tensors
        finally:
            faulthandler.cancel_dump_traceback_later()
        return None

    def _cleared(self) -> bool:
        """Frees the memory of a unit. Returns whether the device still answers."""
        gc.collect()
        if self.device.type != "cuda":
            return True
        try:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True

    def alive(self) -> bool:
        """Whether the device still answers after an error."""
        return self._cleared()

    def save(self) -> None:
        records.save(self.path, self.record)

    def left(self) -> float:
        """Seconds until this process is killed."""
        return self.deadline - time.monotonic()

    def run(self, command: Sequence[str], **variables: str) -> tuple[int, list[str]]:
        """Runs a command, with environment variables, whose output goes to the log as it comes.

        Returns its exit code and its lines.
        """
        print("$ " + " ".join(command), flush=True)
        lines = []
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip())
        return process.returncode, lines


@contextmanager
def explained(figure: dict[str, Any], check: Check) -> Iterator[None]:
    """Turns an error of one contender into its note, unless the device is lost."""
    try:
        yield
    except Exception as error:  # a peer may raise anything
        traceback.print_exc(file=sys.stdout)
        figure["note"] = one_line(error)
        if not check.alive():
            raise

"""Runs stages one after the other, each in a process of its own, into one record."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import process
from benchmarks.gpu import record as records
from benchmarks.gpu.plans import STAGES
from benchmarks.gpu.report import stage_text

WORKER = ("-m", "benchmarks.gpu.worker")


class Driver:
    """One call of the command.

    Args:
        path: the record's file; its log lies beside it.
        call: what `benchmarks.environment.environment` says of this call.
        deadline: when the last stage ends at the latest, by `time.monotonic`.
    """

    def __init__(self, path: Path, call: dict[str, Any], *, dry_run: bool, deadline: float) -> None:
        self.path, self.dry_run, self.deadline = path, dry_run, deadline
        self.log = path.with_suffix(".log")
        record = records.load(path)
        self.call = len(record["calls"])
        record["calls"].append(call)
        records.save(path, record)

    def run(self, names: Sequence[str], again: Sequence[str] = ()) -> list[str]:
        """Runs the stages that are not finished, and those of ``again`` anew. Returns those that are not finished."""
        for name in names:
            if name in again:
                self._forget(name)
            if records.finished(records.load(self.path), name):
                print(f"\n== {name}: finished before")
                continue
            left = self.deadline - time.monotonic()
            if left <= 0:
                self._note(name, records.NO_TIME)
                continue
            print(f"\n== {name} ({left / 60:.1f} minutes left)", flush=True)
            self._stage(name)
            print(stage_text(records.load(self.path)["stages"][name]), flush=True)
        record = records.load(self.path)
        return [name for name in names if not records.finished(record, name)]

    def _forget(self, name: str) -> None:
        record = records.load(self.path)
        record["stages"].pop(name, None)
        records.save(self.path, record)

    def _note(self, name: str, reason: str) -> None:
        """Says why a stage is not finished, unless it says so already."""
        record = records.load(self.path)
        entry = records.stage(record, name)
        entry.setdefault("call", self.call)
        entry.setdefault("error", reason)
        records.save(self.path, record)

    def _stage(self, name: str) -> None:
        """One stage. If its process dies in a unit, another process goes on with the next unit."""
        limit = STAGES[name].seconds
        end = min(self.deadline, time.monotonic() + limit)
        with self.log.open("a") as log:
            log.write(f"\n===== {name} =====\n")
        failed = 0
        while True:
            code = process.run(self._command(name, end), self.log, end - time.monotonic(), os.environ)
            if code == 0:
                return
            if code is None:
                in_time = time.monotonic() < self.deadline
                reason = f"it was stopped at its limit of {limit:.0f} s" if in_time else "the time was up"
                self._ended(name, reason)
                return self._note(name, reason)
            reason = f"its process ended by {_cause(code)}; the log has its last words"
            before, failed = failed, self._ended(name, reason)
            if failed <= before:  # it died outside of its units, and would again
                return self._note(name, reason)

    def _command(self, name: str, end: float) -> list[str]:
        command = [sys.executable, *WORKER, "--stage", name, "--record", str(self.path.resolve())]
        command += ["--call", str(self.call), "--deadline", str(end)]
        return command + ["--dry-run"] * self.dry_run

    def _ended(self, name: str, reason: str) -> int:
        """Records that a stage's process ended early. Returns how many units failed in this call."""
        record = records.load(self.path)
        entry = records.stage(record, name)
        if running := entry.pop("running", None):
            if time.time() - running["since"] >= running["limit"]:
                reason = f"took more than {running['limit']:.0f} s; the log shows where it was"
            failed = {"figures": {}, "bars": [], "notes": [], "call": self.call, "error": reason}
            entry["units"][running["title"]] = failed
            records.save(self.path, record)
        return sum(entry["units"][title]["call"] == self.call for title in records.failures(entry))


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name

"""Tuning, and the step before and after it."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from benchmarks.gpu.bench import PAPER, SPARSE
from benchmarks.gpu.check import Check, Unit
from benchmarks.gpu.configured import configured
from benchmarks.gpu.contest import contest, ours, seconds_of
from benchmarks.shapes import Shape
from tide_kernels import tune

RESERVE = 90.0  # seconds of the stage that are left when tuning has to end


def tuned_file(check: Check) -> Path:
    """The file of this record's tuned configurations, beside it."""
    return check.path.with_suffix(".tuned.json")


def tuning(check: Check) -> None:
    """Tunes launch configurations, into a file beside the record."""
    check.unit("configurations", partial(_tuning, check))


def _tuning(check: Check, unit: Unit) -> None:
    if check.dry_run and (reason := tune.refusal()):
        unit.notes.append(reason)
        return
    minutes = max(check.left() - RESERVE, 20) / 60
    command = [sys.executable, "-m", "tide_kernels.tune", "--minutes", f"{minutes:.2f}", "--no-dispatch"]
    code, lines = check.run(command, TIDE_KERNELS_CACHE=str(tuned_file(check)))
    unit.notes += lines
    if code:
        raise RuntimeError(f"tuning ended with {code}: {' '.join(lines[-1:])}")


def step_tuned(check: Check) -> None:
    """The step by the table's configurations and by the tuned ones, in one process."""
    for full in (PAPER, SPARSE):
        check.unit(str(full), partial(_step_tuned, check, check.shape(full)))


def _step_tuned(check: Check, shape: Shape, unit: Unit) -> None:
    tuned = tuned_file(check)
    entries = json.loads(tuned.read_text()) if tuned.exists() else {}
    unit.notes.append(f"{len(entries)} tuned configurations" + f" in {tuned.name}" * bool(entries))
    contenders = [ours(check), ours(check, all_terms=True)]
    before, after = Unit(), Unit()
    for path, into in ((tuned.with_name("none"), before), (tuned, after)):
        with configured(path):
            contest(check, into, shape, contenders)
    for name in (contender.name for contender in contenders):
        unit.figures[name], unit.figures[f"{name}, tuned"] = before.figures[name], after.figures[name]
    first, second = seconds_of(before.figures), seconds_of(after.figures)
    gains = (f"{name}: {first[name] / second[name]:.3f} times faster tuned" for name in first.keys() & second.keys())
    unit.notes += sorted(gains)

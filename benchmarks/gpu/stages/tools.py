"""The kernels under compute-sanitizer, and the slowest of them under ncu."""

from __future__ import annotations

import re
import sys
from functools import partial

from benchmarks.gpu import tools
from benchmarks.gpu.check import Check, Unit
from benchmarks.gpu.contest import ours
from benchmarks.gpu.once import FULL
from benchmarks.gpu.timeline import record, summary
from benchmarks.shapes import make_problem
from benchmarks.table import Bar

ONCE = (sys.executable, "-m", "benchmarks.gpu.once")
SLOWEST = 3
LAUNCHES = "12"  # of the slowest kernels; a step launches each of them once a chunk


def sanitizer(check: Check) -> None:
    """Invalid accesses and races, over small shapes of every primitive and of the whole step.

    They run once without a tool, which compiles the kernels.
    """
    check.unit("without a tool", partial(_untouched, check))
    for tool in ("racecheck", "memcheck"):
        check.unit(tool, partial(_sanitizer, check, tool))


def _untouched(check: Check, unit: Unit) -> None:
    code, lines = check.run([*ONCE, "small", *["--dry-run"] * check.dry_run])
    unit.notes += lines[-1:]
    if code:
        raise RuntimeError(f"the kernels ended with {code}: {' '.join(lines[-1:])}")


def _sanitizer(check: Check, tool: str, unit: Unit) -> None:
    prefix = _tool(check, unit, "compute-sanitizer", "--tool", tool, "--print-limit", "20", "--target-processes", "all")
    # Each tensor has an allocation of its own, so that an access beyond it shows.
    command = [*prefix, *ONCE, "small", *["--dry-run"] * check.dry_run]
    code, lines = check.run(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    unit.notes += tools.first_errors(lines)
    errors = tools.count_of_errors(lines)
    if errors is not None:
        unit.bars.append(Bar(f"{tool}: errors", errors, 0, at_most=True))
    if code and not errors:
        raise RuntimeError(f"the kernels ended with {code} under {tool}")
    if prefix and errors is None:
        raise RuntimeError(f"{tool} gave no summary")
    unit.notes += [line for line in lines if line.startswith("ran ")]


def ncu(check: Check) -> None:
    """The slowest kernels of a step of all terms, by ncu; products of the vendor's library are passed over."""
    for regime in FULL:
        check.unit(regime, partial(_ncu, check, regime))


def _ncu(check: Check, regime: str, unit: Unit) -> None:
    names = _slowest(check, regime)
    unit.notes.append(f"the slowest but library kernels: {', '.join(names)}")
    sections = [word for section in tools.SECTIONS for word in ("--section", section)]
    # Names as the profiler shows them may be long; ncu compares with the function's own name.
    functions = [re.escape(re.split(r"[<(]", name.removeprefix("void "))[0]) for name in names]
    pattern = f"regex:^({'|'.join(functions)})$"
    options = ["--csv", "--page", "details", "--clock-control", "none", "--profile-from-start", "off", *sections]
    prefix = _tool(check, unit, "ncu", *options, "--kernel-name", pattern, "--launch-count", LAUNCHES)
    code, lines = check.run([*prefix, *ONCE, "step", "--regime", regime, *["--dry-run"] * check.dry_run])
    for name, (seconds, metrics) in tools.profiles(lines).items():
        unit.figures[name[:80]] = {"seconds": seconds, "note": metrics}
    if code:
        raise RuntimeError(f"ncu ended with {code}: {' '.join(lines[-1:])}")
    if prefix and not unit.figures:
        raise RuntimeError("ncu profiled no kernel")


def _slowest(check: Check, regime: str) -> list[str]:
    problem = make_problem(check.shape(FULL[regime]), check.device, check.dtype)
    step = ours(check, all_terms=True).prepare(problem, check.autocast)
    step.run()
    found = summary(record(step.run, check.device, 1), 1)
    return found.slowest(SLOWEST) or list(found.kernels)[:SLOWEST]


def _tool(check: Check, unit: Unit, tool: str, *options: str) -> list[str]:
    """The command's beginning; empty in a dry run without the tool."""
    path = tools.found(tool)
    if path is not None:
        return [path, *options]
    if not check.dry_run:
        raise RuntimeError(f"{tool} is not installed: put it on the PATH")
    unit.notes.append(f"{tool} is not installed: the same command ran without it")
    return []

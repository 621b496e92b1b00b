"""Everything that needs a GPU, in commands of a few minutes: ``python -m benchmarks.gpu_check``.

It needs torch and Triton, but no diffusers and no network. Each stage runs in a process of its own with a limit of its
own; what fails is recorded, and the next shape or stage begins. Results are saved after every shape, as
``<device>-<date>.json`` with a page (``.md``) and a log (``.log``). A call that finds the results of an earlier one
measures only what they lack. ``--dry-run`` runs the same code at toy sizes on the CPU with the reference backend.
docs/gpu.md says how to use it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch

from benchmarks.environment import ROOT, device_name, environment, file_name
from benchmarks.gpu import record as records
from benchmarks.gpu.driver import Driver
from benchmarks.gpu.plans import PLANS, STAGES
from benchmarks.peers import interpreted
from benchmarks.table import RESULTS, bar_table

DRY_RESULTS = ROOT / "build" / "gpu-check"


def refusal(dry_run: bool) -> str | None:
    if dry_run:
        return None
    if not torch.cuda.is_available():
        return "gpu-check needs a CUDA or ROCm GPU and this machine has none; --dry-run runs its code on the CPU"
    if interpreted():
        return "gpu-check measures compiled kernels: unset TRITON_INTERPRET"
    return None


def results_folder(options: argparse.Namespace) -> Path:
    if options.out is not None:
        return Path(options.out)
    return Path(os.environ.get("TIDE_RESULTS") or (DRY_RESULTS if options.dry_run else RESULTS))


def begin(path: Path, earlier: Sequence[Path], device: str) -> None:
    """Writes the record that this call completes: that of ``path``, or else what ``earlier`` files hold.

    Without either, it is the committed record of the same device and day. Figures of another device are left out.
    Raises `RecordError` for a file that is missing or not a record.
    """
    before, _ = records.load_all(earlier)
    record = records.load(path)
    if not record["calls"]:
        record = before if earlier else records.load(RESULTS / path.name)
    record, others = records.without_other_devices(record, device)
    if others:
        print(f"figures of {', '.join(others)} are left out: this is {device}")
    records.save(path, record)


def merge(files: Sequence[Path], folder: Path) -> Path:
    """Writes one record of several calls' files. Raises `RecordError` for one that is missing or not a record."""
    whole, repeated = records.load_all(files)
    if not whole["calls"]:
        raise records.RecordError(f"{files[0]} holds no call: there is nothing to merge")
    devices = {file_name(call.get("device", "cpu")) for call in whole["calls"]}
    name = devices.pop() if len(devices) == 1 else "several-devices"
    path = folder / f"{name}-{whole['calls'][-1]['date']}.json"
    records.save(path, whole)
    for what in repeated:
        print(f"in several files, of which the last counts: {what}")
    return path


def measure(options: argparse.Namespace) -> int:
    if reason := refusal(options.dry_run):
        print(reason, file=sys.stderr)
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    device = torch.device("cpu" if options.dry_run else "cuda")
    call = environment(device)
    name = "dry-run" if options.dry_run else device_name(device)
    path = results_folder(options) / f"{name}-{date.today().isoformat()}.json"
    names = options.stages or PLANS[options.plan]
    begin(path, options.resume_from, call.get("device", "CPU"))
    unfinished = Driver(path, call, dry_run=options.dry_run, deadline=deadline).run(names, options.again)
    stages = records.load(path)["stages"]
    bars = [b for name in names for unit in stages.get(name, {"units": {}})["units"].values() for b in unit["bars"]]
    table = f"\n{bar_table(bars)}\n" if bars else ""
    print(f"{table}\n{path}" + (f"; not finished: {', '.join(unfinished)}" if unfinished else ""))
    return 1 if unfinished else 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    found.add_argument("--minutes", type=float, default=9.0, help="end after this many minutes (default: 9)")
    found.add_argument("--plan", choices=list(PLANS), default="all", help="the stages of one call (default: all)")
    found.add_argument("--stages", nargs="+", choices=list(STAGES), help="only these, in this order")
    found.add_argument("--again", nargs="+", choices=list(STAGES), default=[], help="measure these anew")
    found.add_argument(
        "--out", type=Path, help="the folder of the results (default: $TIDE_RESULTS, or else benchmarks/results)"
    )
    found.add_argument(
        "--resume-from", nargs="+", type=Path, default=[], metavar="FILE", help="records of earlier calls, to complete"
    )
    found.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="measure nothing: merge these records")
    found.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU, with the reference backend")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.merge:
            print(merge(options.merge, results_folder(options)))
            return 0
        return measure(options)
    except records.RecordError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu_check``.

It needs torch and Triton, but no diffusers and no network. Stages run in the order of their importance and
independently: a failure is recorded and the next stage begins. Results are written after each stage, to
``benchmarks/results/<device>-<date>`` as JSON and as a markdown table; a file of the same day is completed, so that
``--stages`` may split a long run. ``--dry-run`` runs the same code at toy sizes on the CPU with the reference backend.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_stages
from benchmarks.gpu_stages import STAGES, Check
from benchmarks.table import RESULTS, bar_table, device_name, environment, figure_table, write


def refusal(dry_run: bool) -> str | None:
    if dry_run:
        return None
    if not torch.cuda.is_available():
        return "gpu-check needs a CUDA or ROCm GPU and this machine has none; --dry-run runs its code on the CPU"
    if gpu_stages.interpreted():
        return "gpu-check measures compiled kernels: unset TRITON_INTERPRET"
    return None


def earlier(out: Path) -> dict[str, Any]:
    """The record of the day so far. Raises `ValueError` for a file that is not a record, which would be lost."""
    if not out.exists():
        return {}
    try:
        if not out.is_file():
            raise OSError("not a regular file")
        record: dict[str, Any] = json.loads(out.read_text())
        report(record)
    except Exception as error:  # a damaged record may fail in many ways
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(
            f"{out} is not a record of gpu-check ({reason}); move it away or give another --out"
        ) from error
    return record


def run(check: Check, names: Sequence[str], out: Path) -> dict[str, Any]:
    """Runs stages and writes their results after each."""
    record = earlier(out)
    record["environment"] = environment(check.device)
    stages = record.setdefault("stages", {})
    for i, name in enumerate(names):
        if check.left() <= 0:
            stages.setdefault(name, {"error": "no time was left for this stage"})
            continue
        print(f"\n== {name} ({check.left() / 60:.1f} minutes left)", flush=True)
        begin = time.monotonic()
        check.begin()
        try:
            STAGES[name](check)
            error = None
        except Exception as raised:  # one stage's failure must not lose the others
            error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:600]}"
        stages[name] = {"seconds": time.monotonic() - begin, **check.results()}
        if error is not None:
            stages[name]["error"] = error
        save(out, record)
        print(stage_text(stages[name]), flush=True)
        if error is not None and not check.alive():
            # After a fault on the device every later call of this process fails.
            return continue_elsewhere(check, names[i + 1 :], out)
    return record


def continue_elsewhere(check: Check, names: Sequence[str], out: Path) -> dict[str, Any]:
    """Runs the remaining stages in a separate process."""
    if names:
        minutes = str(max(check.left(), 0) / 60)
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--minutes", minutes, "--out", str(out), "--stages"]
        subprocess.run([*command, *names], check=False)
    return json.loads(out.read_text())


def save(out: Path, record: dict[str, Any]) -> None:
    write(out, record)
    out.with_suffix(".md").write_text(report(record))


def stage_text(stage: dict[str, Any]) -> str:
    parts = [
        figure_table(figures) if title == "" else f"{title}\n\n{figure_table(figures)}"
        for title, figures in stage["figures"].items()
    ]
    if stage["bars"]:
        parts.append(bar_table(stage["bars"]))
    parts += stage["notes"]
    if "error" in stage:
        parts.append(f"FAILED: {stage['error']}")
    return "\n\n".join(parts)


def report(record: dict[str, Any]) -> str:
    """The record as markdown, bars first."""
    where = record["environment"]
    lines = [f"# {where.get('device', 'CPU')}, {where['date']}", ""]
    lines += [f"{name}: {value}  " for name, value in where.items()]
    bars = [bar for stage in record["stages"].values() for bar in stage.get("bars", [])]
    if bars:
        lines += ["", "## Bars", "", bar_table(bars)]
    for name, stage in record["stages"].items():
        body = stage_text(stage) if "figures" in stage else stage["error"]
        lines += ["", f"## {name}", "", body]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="start no stage after this many minutes (default: 25)"
    )
    parser.add_argument(
        "--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="only these, in this order"
    )
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/<device>-<date>.json)")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU, with the reference backend")
    options = parser.parse_args(arguments)
    if reason := refusal(options.dry_run):
        print(reason, file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.dry_run else "cuda")
    out = options.out or RESULTS / f"{device_name(device)}-{date.today().isoformat()}.json"
    check = Check(device, options.dry_run, time.monotonic() + 60 * options.minutes)
    try:
        earlier(out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    record = run(check, options.stages, out)
    failed = [name for name in options.stages if "error" in record["stages"].get(name, {})]
    print(f"\n{out}" + (f"; not finished: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

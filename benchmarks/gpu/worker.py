"""Runs one stage in this process: ``python -m benchmarks.gpu.worker``, started by `benchmarks.gpu.driver`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.check import Check, DeviceLost, one_line
from benchmarks.gpu.plans import STAGES

LOST = 3  # the exit code of a process whose device does not answer any more


def run(check: Check) -> int:
    """Runs the check's stage and saves whether it reached its end."""
    check.entry |= {"finished": False, "call": check.call}
    check.entry.pop("error", None)
    begin, taken = time.monotonic(), check.entry.get("seconds", 0.0)
    try:
        STAGES[check.name].load()(check)
        check.entry["finished"] = True
    except DeviceLost:
        traceback.print_exc()
        return LOST
    except Exception as error:  # outside of a unit
        traceback.print_exc()
        check.entry["error"] = one_line(error)
    finally:
        check.entry["seconds"] = taken + time.monotonic() - begin
        check.save()
    return 0


def end_with_the_driver() -> None:
    """Kills this process and its children when standard input closes: when whoever started it is gone."""

    def wait() -> None:
        os.read(0, 1)  # not through sys.stdin, whose lock would be held when the interpreter ends
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=list(STAGES), required=True)
    parser.add_argument("--record", type=Path, required=True, help="the record's file")
    parser.add_argument("--call", type=int, required=True, help="the number of this call in the record")
    parser.add_argument("--deadline", type=float, required=True, help="by Python's time.monotonic")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)
    return run(
        Check(
            options.record,
            options.stage,
            call=options.call,
            dry_run=options.dry_run,
            deadline=options.deadline,
            unit_seconds=STAGES[options.stage].unit_seconds,
        )
    )


if __name__ == "__main__":
    end_with_the_driver()
    sys.exit(main())

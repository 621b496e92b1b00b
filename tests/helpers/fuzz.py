"""Reads damaged files and reports what came of each: ``python -m tests.helpers.fuzz KIND CASES SEED``."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # as in conftest.py, before anything imports Triton

from tests.helpers.damage import Damage, damages
from tests.helpers.file_kinds import KINDS, Kind
from tide.errors import TideError
from tide_kernels import BackendError

#: What a case may take.
SECONDS, BYTES = 20, 2**30


class Slow(Exception):
    """A case took :data:`SECONDS`."""


def sampled(kind: Kind, good: Path, trap: Path, n_cases: int, seed: int) -> list[Damage]:
    """``n_cases`` of the cases of a kind, whose good files are written to ``good``; the same ones for a seed."""
    good.mkdir()
    kind.make(good)
    kind.read(good)
    rng = random.Random(seed)
    cases = list(damages(good, trap, rng))
    return rng.sample(cases, min(n_cases, len(cases)))


def fault(kind: Kind, good: Path, trap: Path, case: Damage) -> str | None:
    """What is wrong with how a damaged copy of ``good`` is read; None if it is read, or refused in one line."""
    with tempfile.TemporaryDirectory(dir=good.parent) as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(good, copy)
        case.apply(copy)
        found = _read(kind, copy)
    return "a pickle was loaded" if trap.exists() else found


def _read(kind: Kind, folder: Path) -> str | None:
    try:
        with warnings.catch_warnings(), _limited():
            warnings.simplefilter("ignore")
            kind.read(folder)
    except (TideError, BackendError) as error:
        text = str(error)
        return f"more than a line: {text[:500]!r}" if len(text.splitlines()) != 1 or len(text) > 1000 else None
    except BaseException as error:  # panics of extensions are none of Exception
        return f"{type(error).__name__}: {str(error)[:300]}"
    return None


@contextmanager
def _limited() -> Iterator[None]:
    """Time and memory of the block are bounded."""

    def interrupt(*_: Any) -> None:
        raise Slow

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    former = signal.signal(signal.SIGALRM, interrupt)
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, former)


def main(name: str, n_cases: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        good, trap = Path(folder) / "good", Path(folder) / "trap"
        for case in sampled(KINDS[name], good, trap, n_cases, seed):
            print(f"case {case.name}", flush=True)
            if (found := fault(KINDS[name], good, trap, case)) is not None:
                print(f"fault {case.name}: {found}", flush=True)
    print("done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

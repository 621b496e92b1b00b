"""The cells of a grid, computed by several processes that share one device, until a time limit."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tide.loading import quiet
from tide.studies.grid import Cell, Result, Say, compute_cell, finished_cells

#: Makes the cells of a grid again in a worker process; it is pickled.
MakeCells = Callable[[], Sequence[Cell]]

#: How often killed processes are replaced.
RESTARTS = 3

#: The cells of this worker process, by name.
_CELLS: dict[str, Cell] = {}


@dataclass(frozen=True)
class Workers:
    """How a grid is computed: by ``n`` processes, and no cell started after ``deadline`` (of :func:`time.time`)."""

    n: int = 1
    deadline: float = float("inf")
    say: Say = print

    def run(self, make: MakeCells, out: Path) -> Outcome:
        """Computes the cells of ``make`` that ``out`` does not hold yet, in their order.

        Each result is written as soon as it is known. A cell that raises is left out, and its traceback is written to
        ``out/failed``: the others do not depend on it. Raises :class:`~tide.errors.TideError`, before anything is
        computed, for what :func:`~tide.studies.grid.run_cells` refuses.
        """
        cells = make()
        outcome = Outcome(finished_cells(cells, out), [cell.name for cell in cells])
        left = [cell for cell in cells if cell.name not in outcome.results]
        if not left:
            self.say(f"All {len(cells)} cells are finished in {out}.")
            return outcome
        self.say(f"{len(left)} of {len(cells)} cells to compute.")
        if self.n == 1:
            for cell in left:
                if time.time() < self.deadline:
                    self._note(outcome, out, _computed(cell, out))
            return outcome
        for _ in range(RESTARTS):
            try:
                self._in_processes(make, left, out, outcome)
                break
            except BrokenProcessPool:
                # A process that was killed takes the pool with it; which cell it was at is not known.
                left = [cell for cell in left if cell.name not in {*outcome.results, *outcome.failed}]
                self.say(f"A worker process was killed; {len(left)} cells are left for new ones.")
        return outcome

    def _in_processes(self, make: MakeCells, left: Sequence[Cell], out: Path, outcome: Outcome) -> None:
        # A CUDA device cannot be used in a forked process.
        context = multiprocessing.get_context("spawn")
        others = multiprocessing.active_children()
        pool = ProcessPoolExecutor(min(self.n, len(left)), context, _start, (make,))
        try:
            waiting: set[Future[_Computed | None]] = {
                pool.submit(_run_named, cell.name, out, self.deadline) for cell in left
            }
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    if (computed := future.result()) is not None:
                        self._note(outcome, out, computed)
        except BaseException:
            # Python ends only after its pool's processes, and the cells that they are at may take minutes.
            for process in multiprocessing.active_children():
                if process not in others:
                    process.terminate()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _note(self, outcome: Outcome, out: Path, computed: _Computed) -> None:
        if computed.result is not None:
            outcome.results[computed.name] = computed.result
            self.say(f"[{len(outcome.results)}/{len(outcome.names)}] {computed.name}: {computed.seconds:.1f} s")
            return
        outcome.failed[computed.name] = computed.error
        folder = out / "failed"
        folder.mkdir(exist_ok=True)
        (folder / f"{len(outcome.failed)}.txt").write_text(f"{computed.name}\n\n{computed.error}", encoding="utf-8")
        self.say(f"{computed.name} failed: {computed.error.strip().splitlines()[-1]}")


@dataclass
class Outcome:
    """The ``results`` of the cells ``names`` that were computed, and the tracebacks of those that ``failed``."""

    results: dict[str, Result]
    names: list[str]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [name for name in self.names if name not in self.results]


@dataclass(frozen=True)
class _Computed:
    name: str
    result: Result | None = None
    seconds: float = 0.0
    error: str = ""


def _start(make: MakeCells) -> None:
    torch.set_num_threads(1)  # the processes share the cores
    # It has no end: what a cell computes hears of nothing but what goes wrong.
    quiet().__enter__()
    _CELLS.update({cell.name: cell for cell in make()})


def _run_named(name: str, out: Path, deadline: float) -> _Computed | None:
    """None after the deadline."""
    return _computed(_CELLS[name], out) if time.time() < deadline else None


def _computed(cell: Cell, out: Path) -> _Computed:
    try:
        return _Computed(cell.name, *compute_cell(cell, out))
    except Exception:
        return _Computed(cell.name, error=traceback.format_exc())

"""Cells in several processes: order, a limit of time, and cells that fail or kill their process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tide.errors import TideError
from tide.studies.grid import Cell, cell_path, run_cells
from tide.studies.parallel import Outcome, Workers


def cells(folder: Path, names=("a", "b", "c"), lr: float = 1e-3) -> list[Cell]:
    """Each result is the process that computed it; ``fails`` raises, ``dies`` ends the process the first time, and
    ``sleeps`` takes an hour."""

    def run(name: str):
        (folder / f"ran {name}").touch()
        if name == "sleeps":
            time.sleep(3600)
        if name == "fails":
            raise ValueError("no such latent")
        if name == "dies" and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"process": os.getpid()}

    return [Cell(name, {"name": name, "training": {"lr": lr}}, partial(run, name), lambda: 0.0) for name in names]


def computed(folder: Path, out: Path, *names: str, n: int = 2, **options) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    return Workers(n, say=said.append, **options).run(partial(cells, folder, names), out), said


def test_results_are_those_of_the_grid(tmp_path):
    outcome, said = computed(tmp_path, tmp_path, "a", "b", n=1)
    assert outcome.names == ["a", "b"]
    assert outcome.missing == []
    assert said[0] == "2 of 2 cells to compute."
    assert said[-1].startswith("[2/2] b: ")
    assert run_cells(cells(tmp_path, ("a", "b")), tmp_path, said.append) == outcome.results
    (tmp_path / "ran a").unlink()
    assert computed(tmp_path, tmp_path, "a", "b", n=1)[0].results == outcome.results
    assert not (tmp_path / "ran a").exists()


@pytest.mark.slow
def test_an_interruption_does_not_wait_for_running_cells(tmp_path):
    """It is raised in this process alone, as SIGTERM raises it; another process is at a cell of an hour."""

    def interrupt(line: str) -> None:
        if line.startswith("["):
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Workers(2, say=interrupt).run(partial(cells, tmp_path, ("sleeps", "a")), tmp_path)
    for process in multiprocessing.active_children():
        process.join(60)
    assert multiprocessing.active_children() == []
    assert time.monotonic() - start < 600
    assert cell_path(tmp_path, "a").exists()


@pytest.mark.slow
def test_several_processes(tmp_path):
    """One cell kills its process, which is replaced, and one fails; both leave the others."""
    outcome, said = computed(tmp_path, tmp_path, "dies", "fails", "a", "b")
    assert outcome.missing == ["fails"]
    assert {os.getpid()}.isdisjoint(result["process"] for result in outcome.results.values())
    assert any(line.startswith("A worker process was killed") for line in said)
    assert "fails failed: ValueError: no such latent" in said
    (written,) = (tmp_path / "failed").iterdir()
    assert "Traceback" in written.read_text()
    assert not cell_path(tmp_path, "fails").exists()
    assert run_cells(cells(tmp_path, ("dies", "a", "b")), tmp_path, said.append) == outcome.results


def test_nothing_starts_after_the_deadline(tmp_path):
    outcome, _ = computed(tmp_path, tmp_path, "a", "b", n=1, deadline=time.time() - 1)
    assert outcome.missing == ["a", "b"]
    assert not list(tmp_path.glob("ran *"))


def test_cells_of_other_options_are_refused(tmp_path):
    computed(tmp_path, tmp_path, "a", n=1)
    with pytest.raises(TideError, match=r"a\.json was made with other options \(training\.lr 0\.001, now 0\.01\)"):
        Workers(2).run(partial(cells, tmp_path, ("a",), lr=1e-2), tmp_path)
    assert json.loads(cell_path(tmp_path, "a").read_text())["config"]["training"] == {"lr": 1e-3}

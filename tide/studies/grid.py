"""A grid of named cells: each result is written as soon as it is known, so that an interrupted grid can be resumed."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from tide.errors import TideError
from tide.files import read_sealed, write_sealed
from tide.provenance import check_unchanged
from tide.training.config import comparable, former_defaults

Result = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One result of a grid.

    ``config`` is all that the result depends on, as JSON has it; ``run`` computes the result, a JSON object;
    ``estimate`` the seconds that it will take.
    """

    name: str
    config: dict[str, Any]
    run: Callable[[], Result]
    estimate: Callable[[], float]


def cell_path(out: Path, name: str) -> Path:
    return out / "cells" / (re.sub(r"[^\w.=-]+", "-", name) + ".json")


def run_cells(cells: Sequence[Cell], out: Path, say: Say = print) -> dict[str, Result]:
    """Computes the cells that ``out`` does not hold yet, and returns every result under its cell's name.

    Raises :class:`~tide.errors.TideError`, before anything is computed, if ``out`` holds a cell of another
    configuration or a damaged one. An interrupted cell leaves nothing.
    """
    found = finished_cells(cells, out)
    left = [cell for cell in cells if cell.name not in found]
    if not left:
        say(f"All {len(cells)} cells are finished in {out}.")
        return found
    kept = f" ({len(found)} are finished)" if found else ""
    say(f"{len(left)} of {len(cells)} cells to compute{kept}; estimating their time ...")
    estimates = {cell.name: cell.estimate() for cell in left}
    to_come = sum(estimates.values())
    say(f"About {duration(to_come)} on this machine as busy as it is now.")
    spent = expected = 0.0
    for cell in left:
        found[cell.name], seconds = compute_cell(cell, out)
        spent, expected = spent + seconds, expected + estimates[cell.name]
        to_come -= estimates[cell.name]
        pace = spent / expected if expected > 0 else 1.0
        rest = f", about {duration(to_come * pace)} left" if len(found) < len(cells) else ""
        say(f"[{len(found)}/{len(cells)}] {cell.name}: {seconds:.1f} s{rest}")
    return {cell.name: found[cell.name] for cell in cells}


def finished_cells(cells: Sequence[Cell], out: Path) -> dict[str, Result]:
    """The results of those cells that ``out`` holds, by their names; makes the folder of the others."""
    paths = [cell_path(out, cell.name) for cell in cells]
    if len(set(paths)) < len(paths):
        raise ValueError("two cells have the same name")
    found = {c.name: _finished(c, path) for c, path in zip(cells, paths, strict=True) if path.exists()}
    if len(found) < len(cells):
        try:
            (out / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TideError(f"{out} cannot be written to ({error}); choose another --out") from error
    return found


def compute_cell(cell: Cell, out: Path) -> tuple[Result, float]:
    """Runs a cell and writes its result; that, and the seconds that it took."""
    started = time.perf_counter()
    result = cell.run()
    seconds = time.perf_counter() - started
    described = {"name": cell.name, "config": cell.config, "seconds": round(seconds, 2), "result": result}
    write_sealed(cell_path(out, cell.name), described)
    return result, seconds


class _Kept(TypedDict):
    name: str
    config: dict[str, Any]
    seconds: float
    result: dict[str, Any]


def _finished(cell: Cell, path: Path) -> Result:
    kept = read_sealed(path, _Kept, remedy="delete it to compute it again, or choose another --out")
    defaults = {"training": former_defaults()} if "training" in cell.config else None
    remedy = "use the same options, or another --out"
    before, now = _comparable(kept["config"]), _comparable(cell.config)
    check_unchanged(before, now, f"{path} was made with other options", remedy=remedy, defaults=defaults)
    result: Result = kept["result"]
    return result


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Devices differ in rounding alone, so a grid may hold cells of several; each states its own."""
    if "training" not in config:
        return dict(config)
    training = comparable(config["training"])
    return {**config, "training": {name: value for name, value in training.items() if name != "device"}}


def devices_of(names: Iterable[str], out: Path) -> dict[str, int]:
    """Device -> how many of the finished cells ``names`` trained a model on it."""
    configs = (read_sealed(cell_path(out, name), _Kept, remedy="delete it")["config"] for name in names)
    return dict(Counter(config["training"]["device"] for config in configs if "training" in config))


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

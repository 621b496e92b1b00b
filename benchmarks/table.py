"""Bars and tables of figures, and the files that they are written to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Bar:
    """A figure and its bar: it should be at least ``bar`` or, if ``at_most``, at most ``bar``."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table whose columns also line up in a terminal."""
    lines = [list(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def bar_table(bars: Iterable[dict[str, Any]]) -> str:
    """A table of bars, from their records."""
    rows = [
        [b["what"], f"{b['value']:.3g}", f"{'<=' if b['at_most'] else '>='} {b['bar']:g}", "yes" if b["met"] else "no"]
        for b in bars
    ]
    return markdown(["bar", "measured", "wanted", "met"], rows)


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "median ms": lambda figure: milliseconds(figure.get("seconds")),
    "floor ms": lambda figure: milliseconds(figure.get("floor_seconds")),
    "x floor": lambda figure: ratio(_over(figure)),
    "spread": lambda figure: percent(figure.get("spread")),
    "extra MB": lambda figure: megabytes(figure.get("peak_extra_bytes")),
    "gate": lambda figure: "" if "gate_error" not in figure else f"{figure['gate_error']:.1e}",
    "note": lambda figure: str(figure.get("note", "")),
}


def _over(figure: dict[str, Any]) -> float | None:
    """How many times its floor a figure takes."""
    both = figure.get("seconds") and figure.get("floor_seconds")
    return figure["seconds"] / figure["floor_seconds"] if both else None


def figure_table(figures: dict[str, dict[str, Any]]) -> str:
    """A table of figures by name."""
    return wide_table({"": figures})


def wide_table(groups: dict[str, dict[str, dict[str, Any]]]) -> str:
    """One table of several groups of figures, such as one for each shape. Columns that nothing fills are left out."""
    header = ["what", "by", *_COLUMNS]
    rows = [
        [what if i == 0 else "", by, *(column(figure) for column in _COLUMNS.values())]
        for what, figures in groups.items()
        for i, (by, figure) in enumerate(figures.items())
    ]
    filled = [i for i, name in enumerate(header) if name == "by" or any(row[i] for row in rows)]
    return markdown([header[i] for i in filled], [[row[i] for i in filled] for row in rows])


def replace(path: Path, text: str) -> None:
    """Replaces the file atomically, so that an interrupted run keeps its results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def write(path: Path, record: dict[str, Any]) -> None:
    """Replaces the file by the record as JSON."""
    replace(path, json.dumps(record, indent=2) + "\n")

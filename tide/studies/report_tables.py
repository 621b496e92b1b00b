"""The report's tables, and its numbers in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MINUS, MISSING = "\N{MINUS SIGN}", "\N{EN DASH}"


def figure_of(value: Any) -> float:
    """The number, or NaN for anything that is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return math.nan
    return float(value)


def number(value: Any, decimals: int = 3) -> str:
    value = figure_of(value)
    return MISSING if math.isnan(value) else f"{value:,.{decimals}f}".replace("-", MINUS)


def percent(value: Any, decimals: int = 0) -> str:
    value = figure_of(value)
    return MISSING if math.isnan(value) else f"{100 * value:.{decimals}f} %".replace("-", MINUS)


def digits(decimals: int) -> Callable[[Any], str]:
    return lambda value: number(value, decimals)


def fixed(values: Sequence[Any]) -> Callable[[Any], str]:
    """Writes all values with one number of decimals, so that they line up: enough for three digits of the smallest,
    or two where three would take more than four decimals."""
    sizes = [abs(f) for f in map(figure_of, values) if f and not math.isnan(f)]
    exponent = math.floor(math.log10(min(sizes))) if sizes else 0
    return digits(max(0, min(max(4, 1 - exponent), 2 - exponent, 9)))


def get(data: Any, *keys: str) -> Any:
    """A nested value, None where a level is missing."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


class Cell(NamedTuple):
    text: str
    best: bool = False
    note: str = ""


@dataclass(frozen=True)
class Column:
    """A table's column: ``better`` ("high" or "low") marks its best figure; ``notes`` follow in small type."""

    head: str
    values: Sequence[Any]
    write: Callable[[Any], str] = number
    better: str = ""
    notes: Sequence[str] = ()

    def cells(self) -> list[Cell]:
        figures = [figure_of(value) for value in self.values]
        texts = [self.write(value) for value in self.values]
        known = [f for f in figures if not math.isnan(f)]
        best = (max if self.better == "high" else min)(known) if self.better and len(known) > 1 else None
        # Compared as written: two figures that read the same are equally good.
        shown = None if best is None else texts[figures.index(best)]
        notes = self.notes or [""] * len(texts)
        return [Cell(text, text == shown, note) for text, note in zip(texts, notes, strict=True)]


class Row(NamedTuple):
    label: str
    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    corner: str
    heads: list[str]
    rows: list[Row]


def table(corner: str, labels: Sequence[str], columns: Sequence[Column], kinds: Sequence[str] = ()) -> Table | None:
    """Rows of figures under their heads; columns without any figure are left out, and so is a table without columns.
    ``kinds`` are the rows' classes."""
    shown = [c for c in columns if any(not math.isnan(figure_of(v)) for v in c.values)]
    if not shown:
        return None
    cells = zip(*(c.cells() for c in shown), strict=True)
    rows = [Row(*each) for each in zip(labels, kinds or [""] * len(labels), cells, strict=True)]
    return Table(corner, [c.head for c in shown], rows)


def settings(values: dict[str, Any] | None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested dictionary as dotted names and their values."""
    for name, value in (values or {}).items():
        if isinstance(value, dict) and value:
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", MISSING if value is None else str(value)

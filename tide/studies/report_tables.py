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
    """A table's column: the figure under ``key`` of each row's data, a path where data are nested.

    ``better`` ("high" or "low") marks the best figure; ``interval`` is the path of an interval that follows in small
    type.
    """

    head: str
    key: str | tuple[str, ...]
    write: Callable[[Any], str] = number
    better: str = ""
    interval: tuple[str, ...] = ()

    def values(self, rows: Sequence[Any]) -> list[Any]:
        path = (self.key,) if isinstance(self.key, str) else self.key
        return [get(row, *path) for row in rows]

    def cells(self, rows: Sequence[Any]) -> list[Cell]:
        values = self.values(rows)
        texts = [self.write(value) for value in values]
        known = {f: text for f, text in zip(map(figure_of, values), texts, strict=True) if not math.isnan(f)}
        # Compared as written: two figures that read the same are equally good.
        best = known[(max if self.better == "high" else min)(known)] if self.better and known else None
        marked = best if sum(text != MISSING for text in texts) > 1 else None
        ranges = [get(row, *self.interval) if self.interval else None for row in rows]
        notes = [f"{100 * each[0]:.0f} to {100 * each[1]:.0f}" if each else "" for each in ranges]
        return [Cell(text, text == marked, note) for text, note in zip(texts, notes, strict=True)]


class Row(NamedTuple):
    label: str
    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    corner: str
    heads: list[str]
    rows: list[Row]


def table(
    corner: str, rows: Sequence[tuple[str, Any]], columns: Sequence[Column], kinds: Sequence[str] = ()
) -> Table | None:
    """Labelled data under the heads of ``columns``; columns without any figure are left out, and so is a table without
    columns. ``kinds`` are the rows' classes."""
    data = [each for _, each in rows]
    shown = [c for c in columns if any(not math.isnan(figure_of(value)) for value in c.values(data))]
    if not shown:
        return None
    cells = zip(*(c.cells(data) for c in shown), strict=True)
    named = zip((label for label, _ in rows), kinds or [""] * len(rows), cells, strict=True)
    return Table(corner, [c.head for c in shown], [Row(*each) for each in named])


def settings(values: dict[str, Any] | None, prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested dictionary as dotted names and their values."""
    for name, value in (values or {}).items():
        if isinstance(value, dict) and value:
            yield from settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", MISSING if value is None else str(value)

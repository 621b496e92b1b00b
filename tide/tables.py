"""Tables as text and as CSV, and numbers of several seeds: mean and spread."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tide.files import Write, replace_file

T = TypeVar("T")


def known(values: Iterable[T | None]) -> list[T]:
    """The values that are not None; None stands for what was not reached."""
    return [value for value in values if value is not None]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds (n - 1); 0 for a single one."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def with_spread(values: Sequence[float], digits: int = 4) -> str:
    """``0.01234 ± 0.00012``."""
    return f"{mean(values):.{digits}f} ± {spread(values):.{digits}f}"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows that all have the columns of the first; None is left empty."""
    replace_file(path, csv_writer(rows))


def csv_writer(rows: Sequence[Mapping[str, Any]]) -> Write:
    """A function that writes the rows of :func:`write_csv`, for :func:`tide.files.replace_files`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text = buffer.getvalue()
    return lambda path: path.write_text(text, encoding="utf-8")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """A compact table with its first column aligned to the left; of ``words``, with all columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(w) if i and not words else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines)

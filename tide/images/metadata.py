"""Lists of captions in an image folder: ``metadata.jsonl``, ``metadata.csv`` and ``metadata.parquet``.

A list is read as the ``imagefolder`` loader of ``datasets`` reads it: ``file_name`` is relative to the folder of the
list. A single column that ends in ``_file_name`` serves as well.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tide.errors import TideError
from tide.files import read_text
from tide.files.reading import TEXT_BYTES
from tide.images.prompts import CAPTIONS, is_several, prompt_of
from tide.messages import one_line

FILE_NAME = "file_name"
_SHOULD = '{"file_name": ..., "text": ...}'


class Entry(NamedTuple):
    """One line of a list: a file, its caption ("" for none), where it stands, and whether it has several captions, of
    which the first counts."""

    file: str
    caption: str
    where: str
    several: bool


def read_list(path: Path, caption_column: str | None = None) -> list[Entry]:
    """The entries of a list. The captions are in ``caption_column``, else in the first of
    :data:`~tide.images.prompts.CAPTIONS` that there is.

    Raises :class:`~tide.errors.TideError` for a damaged list, and for one without such columns.
    """
    rows = list(_READERS[path.suffix.lower()](path))
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    if not columns:
        return []
    file, caption = _file_column(path, columns), _caption_column(path, columns, caption_column)
    return [entry for where, row in rows if (entry := _entry(where, row, file, caption))]


def _entry(where: str, row: Mapping[str, Any], file: str, caption: str) -> Entry | None:
    name = row.get(file)
    if not isinstance(name, str) or not name:
        raise TideError(f"{where} names no file in {one_line(file)}; correct or remove it")
    value = row.get(caption)
    return Entry(name, prompt_of(value, f"{caption} of {where}").strip(), where, is_several(value))


def _file_column(path: Path, columns: list[str]) -> str:
    named = [FILE_NAME] if FILE_NAME in columns else [each for each in columns if each.endswith(f"_{FILE_NAME}")]
    if len(named) == 1:
        return named[0]
    raise TideError(f"{path} has no column {FILE_NAME} ({_listed(columns)}); name the column of the images so")


def _caption_column(path: Path, columns: list[str], asked: str | None) -> str:
    found = next((name for name in ([asked] if asked else CAPTIONS) if name in columns), None)
    if found is None:
        wanted = f"no column {asked}" if asked else "no column of captions, such as text"
        raise TideError(f"{path} has {wanted} ({_listed(columns)}); name the captions' column with caption_column")
    return found


def _listed(columns: list[str]) -> str:
    return f"it has {one_line(', '.join(columns))}" if columns else "it has none"


# -- formats: each gives (where, row) --------------------------------------------------------------------------


def _jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # JSON's strings may hold U+2028, U+0085 and others that str.splitlines takes for the end of a line.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise TideError(f"{path} line {number} is not {_SHOULD}; correct it")
        yield f"{path} line {number}", row


def _csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    text = read_text(path)
    lines = text.lstrip("\n").split("\n")
    before = text.index(lines[0])  # empty lines above the first
    # Where the comma is the decimal point, spreadsheets write semicolons.
    delimiter = next((each for each in ",;\t" if each in lines[0]), ",")
    csv.field_size_limit(TEXT_BYTES)  # else 131,072 characters
    reader = csv.DictReader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        if reader.fieldnames:  # a list without its first line is no empty list
            _file_column(path, list(reader.fieldnames))
        for row in reader:
            where = f"{path} line {before + reader.reader.line_num}"
            if None in row:
                raise TideError(
                    f"{where} has more fields than the first line; put a caption that holds "
                    f'"{delimiter}" in double quotes, and write a double quote in it twice'
                )
            yield where, row
    except csv.Error as error:
        first = next(i for i in range(reader.line_num, len(lines)) if lines[i])  # of the entry that is at fault
        where, last = f"{path} line {before + first + 1}", reader.reader.line_num
        if "end of data" in str(error) or last > first + 1:
            said = f"{where}: a double quote is not closed"
            raise TideError(f"{said}; close it, and write one that belongs to a caption twice") from None
        raise TideError(f"{where} is not CSV ({one_line(error)}); correct it") from None


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if find_spec("pyarrow") is None:
        raise TideError(f"{path} is read by pyarrow; `pip install datasets` brings it")
    from pyarrow import ArrowException, parquet  # optional

    try:
        rows = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        raise TideError(f"{path} is not a readable Parquet file ({one_line(error)}); make it again") from None
    yield from ((f"{path} row {number}", row) for number, row in enumerate(rows))


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, Mapping[str, Any]]]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}

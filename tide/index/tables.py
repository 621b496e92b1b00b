"""The tables of an index: what is sorted, filtered and searched, in SQLite."""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tide.files import replace_file

_SCHEMA = """
CREATE TABLE latents (
    latent INTEGER PRIMARY KEY, frequency REAL, step INTEGER, strongest REAL, concept TEXT, level TEXT, auroc REAL,
    monosemanticity REAL, images INTEGER
);
CREATE TABLE images (image INTEGER PRIMARY KEY, name TEXT, caption TEXT, start INTEGER, end INTEGER);
CREATE VIRTUAL TABLE latent_text USING fts5(text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3');
CREATE VIRTUAL TABLE image_text USING fts5(text, tokenize = 'unicode61 remove_diacritics 2', prefix = '2 3');
"""


def write_tables(path: Path, latents: Iterable[Sequence[Any]], images: Iterable[Sequence[Any]]) -> None:
    """``latents``: rows of the table of that name; ``images``: of the other one."""
    # In a folder of its own: SQLite would play the journal of a killed process back into a new file of its name.
    replace_file(path, lambda temporary: _write(temporary, latents, images))


def _write(path: Path, latents: Iterable[Sequence[Any]], images: Iterable[Sequence[Any]]) -> None:
    try:
        _fill(path, latents, images)
    except sqlite3.OperationalError as error:  # such as a full disk
        raise OSError(str(error)) from error


def _fill(path: Path, latents: Iterable[Sequence[Any]], images: Iterable[Sequence[Any]]) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(_SCHEMA)
        db.executemany("INSERT INTO latents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", map(_plain, latents))
        db.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", map(_plain, images))
        db.execute(
            "INSERT INTO latent_text (rowid, text) SELECT latent, concept || ' ' || level FROM latents "
            "WHERE concept IS NOT NULL"
        )
        db.execute("INSERT INTO image_text (rowid, text) SELECT image, name || ' ' || caption FROM images")


def _plain(row: Sequence[Any]) -> list[Any]:
    """A row whose texts are Unicode: names of files may hold bytes that are none, which SQLite does not take."""
    return [each.encode("utf-8", "replace").decode() if isinstance(each, str) else each for each in row]


def matching(text: str) -> str:
    """What a reader types as a query of FTS5: every word as a prefix, and nothing of it as an operator."""
    # Accents as parts of their letters, as FTS5 sees them: by themselves they are no letters and would end the word.
    whole = "".join(c for c in unicodedata.normalize("NFC", text) if not "\u0300" <= c <= "\u036f")
    words = "".join(c if c.isalnum() else " " for c in whole).split()
    return " ".join(f'"{word}"*' for word in words)

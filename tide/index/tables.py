"""The tables of an index: what is sorted, filtered and searched, in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

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
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(_SCHEMA)
        db.executemany("INSERT INTO latents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", latents)
        db.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", images)
        db.execute(
            "INSERT INTO latent_text (rowid, text) SELECT latent, concept || ' ' || level FROM latents "
            "WHERE concept IS NOT NULL"
        )
        db.execute("INSERT INTO image_text (rowid, text) SELECT image, name || ' ' || caption FROM images")


def matching(text: str) -> str:
    """What a reader types as a query of FTS5: every word as a prefix, and nothing of it as an operator."""
    words = "".join(c if c.isalnum() else " " for c in text).split()
    return " ".join(f'"{word}"*' for word in words)

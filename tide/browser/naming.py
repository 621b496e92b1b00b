"""What people and programs say of a run's latents, kept in its folder and searched here."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import Any

from tide.browser.runs import Run
from tide.index.tables import matching
from tide.interpretation.names import NAMES, Entry, LatentNames, now


class Naming:
    """The names of a run, read again when their file has changed, whoever wrote it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._stamp: Any = None
        self._names: dict[int, LatentNames] = {}
        self._database: sqlite3.Connection | None = None

    def all(self) -> dict[int, dict[str, Any]]:
        """What is said of every latent of which anything is. Raises :class:`~tide.errors.TideError` for a damaged file,
        and for a run that is gone."""
        _ = self.run.index
        with self._lock:
            self._refresh()
            return {latent: _shown(each) for latent, each in self._names.items()}

    def add(self, latent: int, by: str, **said: Any) -> dict[str, Any]:
        """Adds what ``by`` says now, and returns all that is said of the latent."""
        self.run.index.check_latent(latent)
        self.run.names.add([Entry(latent, f"person:{by.strip()}", now(), **said)])
        return self.all().get(latent, _shown(LatentNames(())))

    def search(self, text: str) -> list[int]:
        """Latents whose names or notes hold words that begin as those of ``text``."""
        asked = matching(text)
        if not asked:
            return []
        with self._lock:
            self._refresh()
            if self._database is None:
                return []
            sql = "SELECT rowid FROM said WHERE said MATCH ?"
            with closing(self._database.execute(sql, (asked,))) as found:
                return [row[0] for row in found]

    def _refresh(self) -> None:
        path = self.run.folder / NAMES
        stamp = (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None
        if stamp == self._stamp:
            return
        self._names = self.run.names.read()
        database = sqlite3.connect(":memory:", check_same_thread=False)
        database.execute("CREATE VIRTUAL TABLE said USING fts5(text, tokenize = 'unicode61 remove_diacritics 2')")
        texts = ((i, " ".join(f"{e.name or ''} {e.note or ''}" for e in each.all)) for i, each in self._names.items())
        database.executemany("INSERT INTO said (rowid, text) VALUES (?, ?)", texts)
        if self._database is not None:
            self._database.close()
        self._database, self._stamp = database, stamp


def _shown(names: LatentNames) -> dict[str, Any]:
    score = names.score
    return {
        "name": names.name,
        "by": names.by,
        "score": None if score is None else {"auroc": score.auroc, "images": score.images},
        "notes": [{"by": each.by, "at": each.at, "note": each.note} for each in names.notes],
        "starred": names.starred,
        "stars": [each.by for each in names.all if each.star],
        "names": [
            {
                "by": each.by,
                "name": each.name,
                "score": None if each.score is None else {"auroc": each.score.auroc, "images": each.score.images},
            }
            for each in names.all
            if each.name
        ],
    }

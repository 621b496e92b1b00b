"""Names of latents, written by people and found automatically: a plain file of lines beside a checkpoint."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

from tide.errors import TideError
from tide.files import append_lines, lock_file, read_lines
from tide.interpretation.entry import Entry, Score, now, read_entry

__all__ = ["NAMES", "Entry", "LatentNames", "Names", "Score", "now"]

#: The file's name in a checkpoint's folder.
NAMES = "names.jsonl"
#: Field -> (latent, by) -> the entry in force.
_Said = dict[str, dict[tuple[int, str], Entry]]


@dataclass(frozen=True, slots=True)
class LatentNames:
    """What is said of a latent.

    ``all`` has an entry for each field in force of each ``by``, with that field alone (a name with its score), the
    oldest first. Names and notes that were taken back, and stars, are not among them.
    """

    all: tuple[Entry, ...]

    @property
    def shown(self) -> Entry | None:
        """The entry of the name to show: a person's latest, or else the one of the highest AUROC on images that did not
        choose it, of equal ones the latest."""
        named = [entry for entry in self.all if entry.name]
        people = [entry for entry in named if entry.by_person]
        return people[-1] if people else max(reversed(named), key=_area, default=None)

    @property
    def name(self) -> str | None:
        """The name to show."""
        return None if self.shown is None else self.shown.name

    @property
    def by(self) -> str | None:
        """Who gave that name."""
        return None if self.shown is None else self.shown.by

    @property
    def score(self) -> Score | None:
        """Its score, if it was found automatically."""
        return None if self.shown is None else self.shown.score

    @property
    def notes(self) -> tuple[Entry, ...]:
        """The entries of notes, the oldest first."""
        return tuple(entry for entry in self.all if entry.note)

    @property
    def starred(self) -> bool:
        """Whether anybody gave it a star."""
        return any(entry.star for entry in self.all)


class Names:
    """A file of names. Any number of processes and threads may add to it and read it at once.

    ``n_latents``: how many latents there are, if it is known; others are refused.

    ``path`` is the file, which need not exist yet.
    """

    def __init__(self, path: str | Path, n_latents: int | None = None) -> None:
        self.path = Path(path)
        self.n_latents = n_latents

    def add(self, entries: Iterable[Entry]) -> None:
        """Appends entries, all of them or none; they are on disk when this returns.

        Raises :class:`~tide.errors.TideError` for latents that there are not, and if the file cannot be written.
        """
        entries = list(entries)
        for entry in entries:
            if (fault := self._fault(entry)) is not None:
                raise TideError(f"{fault}; correct the entry")
        with lock_file(self.path):
            append_lines(self.path, map(Entry.line, entries))

    def read(self) -> dict[int, LatentNames]:
        """What is said of every latent of which something is: of each ``by`` and each field the last entry by time, of
        equal times the later in the file. {} without a file.

        Raises :class:`~tide.errors.TideError`, naming the line, for a file that is damaged. Half a line at the end,
        which a killed writer leaves, is passed over.
        """
        with _uncollected():
            return _by_latent(_in_force(self._entries(self.path)))

    def merge(self, other_path: str | Path) -> int:
        """Adds the entries of another file that this one lacks; returns how many.

        Merging twice adds nothing, and two files that are merged into each other say the same: where both have a field
        from one author with one time, and it differs, the later text by the alphabet is in force in both.

        Raises :class:`~tide.errors.TideError` if either file is damaged or names latents that there are not, or if the
        other does not exist; nothing is added then.
        """
        other = Path(other_path)
        if not other.exists():
            raise TideError(f"{other} does not exist; check the path")
        with _uncollected(), lock_file(self.path):
            theirs = list(self._entries(other))
            ours = list(self._entries(self.path))
            lacking = _lacking(ours, theirs)
            append_lines(self.path, map(Entry.line, lacking + _settled(ours, theirs, lacking)))
        return len(lacking)

    def _entries(self, path: Path) -> Iterator[Entry]:
        """The entries of a file, checked."""
        for number, line in enumerate(read_lines(path), 1):
            try:
                if line and not line.isspace():
                    entry = read_entry(line)
                    if (fault := self._fault(entry)) is not None:
                        raise TideError(fault)
                    yield entry
            except TideError as error:
                raise TideError(f"{path}, line {number}: {error}; correct or remove the line") from None

    def _fault(self, entry: Entry) -> str | None:
        if self.n_latents is None or entry.latent < self.n_latents:
            return None
        return f"latent is {entry.latent} and must be below {self.n_latents}"


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which finds nothing among a million entries and takes as long as reading them."""
    runs = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if runs:
            gc.enable()


def _area(entry: Entry) -> float:
    return -1.0 if entry.score is None else entry.score.auroc


def _in_force(entries: Iterable[Entry]) -> _Said:
    """The last entry of each field, also those that take something back."""
    names: dict[tuple[int, str], Entry] = {}
    notes: dict[tuple[int, str], Entry] = {}
    stars: dict[tuple[int, str], Entry] = {}
    for entry in entries:
        key = entry.latent, entry.by
        if entry.name is not None and _replaces(entry, names.get(key)):
            names[key] = entry
        if entry.note is not None and _replaces(entry, notes.get(key)):
            notes[key] = entry
        if entry.star is not None and _replaces(entry, stars.get(key)):
            stars[key] = entry
    return {"name": names, "note": notes, "star": stars}


def _replaces(entry: Entry, former: Entry | None) -> bool:
    return former is None or entry.when >= former.when


def _by_latent(said: _Said) -> dict[int, LatentNames]:
    found: dict[int, list[Entry]] = {}
    for field, entries in said.items():
        for (latent, _), entry in entries.items():
            if getattr(entry, field):
                found.setdefault(latent, []).append(entry.only(field))
    # Of equal times by author, not by the place in the file: merged files have places of their own.
    return {latent: LatentNames(tuple(sorted(found[latent], key=_order))) for latent in sorted(found)}


def _order(entry: Entry) -> tuple[str, str, int]:
    return entry.when, entry.by, 0 if entry.name else 1 if entry.note else 2


def _lacking(ours: Iterable[Entry], theirs: Iterable[Entry]) -> list[Entry]:
    known = set(ours)
    return [entry for entry in dict.fromkeys(theirs) if entry not in known]


def _settled(ours: list[Entry], theirs: list[Entry], lacking: list[Entry]) -> list[Entry]:
    """What has to be said once more, so that fields of equal times are in force alike whichever file was merged into
    which: the last line decides, and that is another one in each."""
    said, other, joined = _in_force(ours), _in_force(theirs), _in_force([*ours, *lacking])
    again = []
    for field in said:
        for key in said[field].keys() & other[field].keys():
            wanted = max(said[field][key], other[field][key], key=partial(_rank, field))
            if _rank(field, joined[field][key]) != _rank(field, wanted):
                again.append(wanted.only(field))
    return sorted(again, key=attrgetter("latent", "by", "when"))


def _rank(field: str, entry: Entry) -> tuple[str, str]:
    """The order of two entries of a field in two files."""
    return entry.when, entry.only(field).line()

"""The prompts of a folder's pictures, from a file of its own."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tide.activations.source import read_prompts
from tide.errors import TideError
from tide.images.metadata import read_list
from tide.messages import counted, one_line

#: Suffixes of lists that name the pictures.
LISTS = (".jsonl", ".csv", ".parquet")


def prompts_of(path: Path, names: Sequence[str], shown: str) -> dict[str, str]:
    """Picture -> prompt, for the pictures ``names`` of a folder that messages call ``shown``.

    ``path`` is a list as :mod:`tide.images.metadata` reads it (:data:`LISTS`; further pictures may be in it), or else a
    text with one prompt a line, in the order of ``names``; empty lines do not count.

    Raises :class:`~tide.errors.TideError` for a file that is missing or damaged, unless each picture has one prompt,
    and for a text where the names are not in the order of their numbers: ``10.png`` comes before ``2.png``.
    """
    if is_list(path):
        entries = [(posixpath.normpath(entry.file), entry.caption) for entry in read_list(path)]
        listed = dict(entries)
        twice = next((name for name, n in Counter(name for name, _ in entries).items() if n > 1), None)
        if twice is not None:
            raise TideError(f"{path} names {one_line(twice, 100)} twice; leave one prompt for it")
        if missing := next((name for name in names if not listed.get(name)), None):
            raise TideError(f"{path} has no prompt for {one_line(missing, 100)} of {shown}; add it")
        return {name: listed[name] for name in names}
    texts = read_prompts(path)
    if len(texts) != len(names):
        raise TideError(
            f"{path} holds {counted(len(texts), 'prompt')} and {shown} {counted(len(names), 'picture')}; write one a "
            "line, in the order of the pictures' names"
        )
    for first, second in itertools.pairwise(names):
        if _by_number(second) < _by_number(first):
            raise TideError(
                f"{one_line(first, 100)} comes before {one_line(second, 100)} in {shown}, so a text of prompts would "
                f"be out of order; pad the numbers with zeros, or give a list by name ({', '.join(LISTS)})"
            )
    return dict(zip(names, texts, strict=True))


def is_list(path: Path) -> bool:
    """Whether the file gives prompts by the pictures' names."""
    return path.suffix.lower() in LISTS


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """The order in which people count: digits as numbers, all else as text."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]

"""The prompts of a folder's pictures, from a file of its own."""

from __future__ import annotations

import posixpath
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

    Raises :class:`~tide.errors.TideError` for a file that is missing or damaged, and unless each picture has a prompt.
    """
    if path.suffix.lower() in LISTS:
        listed = {posixpath.normpath(entry.file): entry.caption for entry in read_list(path)}
        if missing := next((name for name in names if not listed.get(name)), None):
            raise TideError(f"{path} has no prompt for {one_line(missing, 100)} of {shown}; add it")
        return {name: listed[name] for name in names}
    texts = read_prompts(path)
    if len(texts) != len(names):
        raise TideError(
            f"{path} holds {counted(len(texts), 'prompt')} and {shown} {counted(len(names), 'picture')}; write one a "
            "line, in the order of the pictures' names"
        )
    return dict(zip(names, texts, strict=True))

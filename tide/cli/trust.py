"""Pipelines that a file names by itself: the bundled one is loaded, any other after asking."""

from __future__ import annotations

import sys
from typing import Any

from tide.errors import TideError


def followed(name: Any, source: str) -> str:
    """A pipeline that the file ``source`` names, where none was asked for: the bundled one as it is, any other after
    asking at a terminal. Raises :class:`~tide.errors.TideError` where nobody can be asked, or the answer is no."""
    from tide.pipeline_names import BUNDLED

    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise TideError(f"{source} does not name its pipeline; give --pipeline")
    if name == BUNDLED or _agreed(f"{source} is of the pipeline {name}; load it? [y/N] "):
        return name
    raise TideError(f"{source} is of the pipeline {name}, which is not loaded unasked; give --pipeline {name}")


def _agreed(question: str) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")

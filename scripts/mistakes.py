"""A user's mistake ends a script with one line, as it ends a command of ``tide``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tide.errors import TideError


@contextmanager
def told() -> Iterator[None]:
    """Prints a :class:`~tide.errors.TideError` of the block to stderr and ends the program with 2."""
    try:
        yield
    except TideError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def count(text: str) -> int:
    """The value of an option that counts something, at least 1, for argparse."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 2**31 - 1):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number of at least 1")
    return int(text)

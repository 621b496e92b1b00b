"""Checks of numbers that callers give."""

from __future__ import annotations

from typing import Any

from tide.errors import TideError


def check_count(name: str, value: Any) -> None:
    """Raises :class:`~tide.errors.TideError` unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TideError(f"{name} {value!r} is not a whole number; give at least 1")
    if value < 1:
        raise TideError(f"{name} {value} is too small; give at least 1")

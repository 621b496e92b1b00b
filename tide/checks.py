"""Numbers that callers give or leave to a default, checked, and amounts of bytes that are written as text."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from tide.errors import TideError

#: Guidance scale of sampling runs unless told otherwise.
GUIDANCE = 4.5
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def check_count(name: str, value: Any) -> None:
    """Raises :class:`~tide.errors.TideError` unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TideError(f"{name} {value!r} is not a whole number; give at least 1")
    if value < 1:
        raise TideError(f"{name} {value} is too small; give at least 1")


def n_bytes(text: str) -> int:
    """``50GB``, ``1.5 TB``, ``800MB`` (powers of ten)."""
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS:
        raise TideError(f"{shown(text)} is not an amount of disk; write it as 800MB or 50GB")
    return int(Decimal(found[1]) * _UNITS[found[2].upper()])


def shown(text: str) -> str:
    """The text as a message quotes it: at most 60 letters."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")

"""Paths of this machine, which say who works where and mean nothing elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_ABSOLUTE = re.compile(r"(?:/|~|[A-Za-z]:[\\/])[^\n]*")


def without_paths(value: Any) -> Any:
    """A value of JSON in which the last part stands for every absolute path: ``photos`` for ``/home/me/photos``."""
    if isinstance(value, Mapping):
        return {without_paths(name): without_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if isinstance(value, str) and _ABSOLUTE.fullmatch(value):
        return PureWindowsPath(value).name if "\\" in value else PurePosixPath(value).name or value
    return value

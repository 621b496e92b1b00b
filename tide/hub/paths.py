"""Paths of this machine, which say who works where and mean nothing elsewhere, and keys within addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit

#: An absolute path of Linux, of Windows or of a share in a network, alone or after ``name=``.
_ABSOLUTE = re.compile(r"(?P<before>[\w.-]+=)?(?:file://)?(?P<path>(?:/|~|[A-Za-z]:[\\/]|\\\\).*)", re.DOTALL)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def without_paths(value: Any) -> Any:
    """A value of JSON in which the last part stands for every absolute path: ``photos`` for ``/home/me/photos``.

    Addresses lose what may be a key: ``user:password@``, and all that follows ``?`` or ``#``.
    """
    if isinstance(value, Mapping):
        return {without_paths(name): without_paths(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    if not isinstance(value, str):
        return value
    if found := _ABSOLUTE.fullmatch(value):
        return (found["before"] or "") + _last_part(found["path"])
    return _without_keys(value) if _ADDRESS.fullmatch(value) else value


def _last_part(path: str) -> str:
    parts = PureWindowsPath(path) if "\\" in path else PurePosixPath(path)
    return parts.name or path


def _without_keys(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:  # text that merely looks like one
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()

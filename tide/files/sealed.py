"""JSON files with a checksum of their contents: results that took hours and whose values no type can check.

The checksum finds damage and hand-made changes. It is not a signature: anyone can compute it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files.reading import read_json
from tide.files.writing import replace_file

#: The entry that holds the SHA-256 of all others.
SEAL = "sha256"


def write_sealed(path: Path, data: dict[str, Any]) -> None:
    """Writes ``data`` with the checksum of its JSON; unlike :func:`~tide.files.write_json` it keeps NaN, which Python
    reads back, so that figures computed from kept results are those of the first run.

    ``path`` is the file, which is replaced in one step.
    """
    text = json.dumps({**data, SEAL: _digest(data)}, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_sealed(path: Path, kind: Any, *, remedy: str) -> dict[str, Any]:
    """What :func:`write_sealed` was given, checked against ``kind`` as :func:`~tide.files.read_json` does.

    ``path`` is the file.

    Raises :class:`~tide.errors.TideError`, which ends with ``remedy``, if anything in it was changed. A file without a
    checksum comes from an earlier version and is accepted.
    """
    data: dict[str, Any] = read_json(path, kind)
    if SEAL in data and data.pop(SEAL) != _digest(data):
        raise TideError(f"{path} does not agree with its checksum; {remedy}")
    return data


def _digest(data: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(data))  # keys become text, which can be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

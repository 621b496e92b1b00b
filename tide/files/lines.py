"""Files of JSON lines that several processes add to and that others read meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from tide.errors import TideError
from tide.files.folders import sync_folder
from tide.files.reading import TEXT_BYTES
from tide.files.writing import replace_file


def read_lines(path: Path) -> list[str]:
    """The whole lines of a UTF-8 file, without their ends; none of a file that does not exist.

    A writer may add lines meanwhile: what is there when this begins is read. Half a line at the end, which a writer
    that is at work or was killed leaves, is left out. A last line of whole JSON that only lacks its end is a line.

    ``path`` is the file.

    Raises :class:`~tide.errors.TideError` if the file cannot be read, is too large, or is not text; the message says in
    which line.
    """
    try:
        data = _read(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TideError(f"{path} cannot be read ({error.strerror or error}); check the path") from None
    whole, tail = _split(data)
    if _is_json(tail):
        whole = data
    try:
        text = whole.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = whole.count(b"\n", 0, error.start) + 1
        raise TideError(f"{path}, line {number}, is not UTF-8 text; correct or remove the line") from None
    # Not splitlines(): its line ends are more than those of a file.
    return text.removesuffix("\n").split("\n") if text else []


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Adds ``lines``, which hold no line ends, to a file that the caller holds (:func:`~tide.files.lock_file`).

    They are on disk when this returns. Half a line that a killed writer left at the end is removed first.

    ``path`` is made if there is none.

    Raises :class:`~tide.errors.TideError` if the file cannot be written or would grow too large to be read; nothing is
    added then.
    """
    data = "".join(f"{line}\n" for line in lines).encode()
    if not data:
        return
    try:
        data = _mend(path) + data
        is_new = not path.exists()
        with path.open("ab", buffering=0) as file:
            _append(file, data, path)
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise TideError(f"{path} could not be written ({reason}); free some space or check the folder") from error


def _append(file: FileIO, data: bytes, path: Path) -> None:
    before = os.fstat(file.fileno()).st_size
    if before + len(data) > TEXT_BYTES:
        raise TideError(f"{path} would be larger than {TEXT_BYTES} bytes; move it away and begin another")
    left = memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            file.truncate(before)
        raise


def _mend(path: Path) -> bytes:
    """Removes half a line at the end; returns what the last line lacks.

    The file is replaced, not cut: who reads it at this moment goes on reading the former one.
    """
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return b""
            file.seek(-1, os.SEEK_END)
            if file.read(1) == b"\n":
                return b""
        data = _read(path)
    except FileNotFoundError:
        return b""
    whole, tail = _split(data)
    if _is_json(tail):
        return b"\n"
    replace_file(path, lambda to: to.write_bytes(whole))
    return b""


def _read(path: Path) -> bytes:
    """The bytes that the file has now: more may be added while they are read."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > TEXT_BYTES:
            raise TideError(f"{path} is larger than {TEXT_BYTES} bytes; check the path")
        return file.read(size)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """The whole lines, and what follows the last line end."""
    end = data.rfind(b"\n") + 1
    return data[:end], data[end:]


def _is_json(tail: bytes) -> bool:
    """Whether a last line is complete: no part of a JSON object that lacks its end is JSON."""
    try:
        return isinstance(json.loads(tail.decode("utf-8-sig")), dict)
    except (ValueError, RecursionError):
        return False

"""Tensors of which only a few rows are read or appended at a time, in safetensors files of one tensor each.

Rows are read by position, not mapped, so that what was read does not stay in the memory of a process that serves for
days. A file that grows has a header of fixed length, which is written again with the number of rows when it is closed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tide.errors import TideError
from tide.files.folders import sync

#: safetensors' names of the types that are kept here.
_KINDS = {"U8": "<u1", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4"}
_NAMES = {np.dtype(kind): name for name, kind in _KINDS.items()}
#: Bytes of the header of a file that grows, its length's eight bytes included: room for any shape.
_HEADER = 256
#: A longer header is not one of a file of few tensors.
_LONGEST = 2**24


class Rows:
    """The rows of the tensor ``name`` in a safetensors file, each read when it is asked for.

    ``rows[3:5]`` and ``rows[[7, 2]]`` are arrays ``[rows, *shape[1:]]``, ``rows[3]`` is one row; a row that does not
    exist, also one before the first, is an :class:`IndexError`. Raises :class:`~tide.errors.TideError` for a file that
    is missing, damaged or cut short, or lacks the tensor.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        if path.exists() and not path.is_file():  # to open a pipe would wait for its writer
            raise TideError(f"{path} is not a file; make the index again")
        try:
            self._file = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise TideError(f"{path} does not exist; make the index again") from None
        except OSError as error:
            raise TideError(f"{path} cannot be read ({error.strerror or error}); make the index again") from None
        try:
            start, about = _header(self._file.fileno())
            found = about[name]
            self.shape, self.dtype = _shape(found["shape"]), np.dtype(_KINDS[found["dtype"]])
            first, last = _shape(found["data_offsets"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
            self._file.close()
            raise TideError(f"{path} is not a readable safetensors file with {name}; make the index again") from None
        self.start, self._row = start + first, self.dtype.itemsize * prod(self.shape[1:])
        size = self.dtype.itemsize * prod(self.shape)
        if not self.shape or last - first != size or self.start + size > os.fstat(self._file.fileno()).st_size:
            self._file.close()
            raise TideError(f"{path} is cut short or damaged; make the index again")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Any) -> np.ndarray:
        if isinstance(which, slice):
            first, last, step = which.indices(len(self))
            assert step == 1
            return self._read(first, max(0, last - first))
        if isinstance(which, int | np.integer):
            return self._read(int(which), 1)[0]
        found = [self._read(int(row), 1) for row in which]
        return np.concatenate(found) if found else np.empty((0, *self.shape[1:]), self.dtype)

    def _read(self, first: int, count: int) -> np.ndarray:
        if not 0 <= first <= first + count <= len(self):
            raise IndexError(f"rows {first}..{first + count - 1} of {len(self)}")
        data = bytearray(count * self._row)
        view = memoryview(data)
        at = self.start + first * self._row
        while view:
            n = os.preadv(self._file.fileno(), [view], at)
            if not n:
                raise TideError(f"{self.path} is cut short; make the index again")
            view, at = view[n:], at + n
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def close(self) -> None:
        self._file.close()


def _header(file: int) -> tuple[int, dict[str, Any]]:
    """Where the data begin, and what the header says."""
    (length,) = struct.unpack("<Q", os.pread(file, 8, 0))
    if length > _LONGEST:
        raise ValueError("the header is too long")
    return 8 + length, json.loads(os.pread(file, length, 8))


def _shape(found: Any) -> tuple[int, ...]:
    """A list of whole numbers of a header."""
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise ValueError("not a list of whole numbers")
    return tuple(found)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises :class:`~tide.errors.TideError` if the block cannot write ``path``."""
    try:
        yield
    except OSError as error:
        raise TideError(
            f"{path} could not be written ({error.strerror or error}); free some space or choose another folder"
        ) from error


class GrowingRows:
    """A safetensors file of one tensor ``name [rows, *row]`` to which rows are appended.

    Until :meth:`close` its header says that it has no rows. ``n`` rows of an existing file are kept, those that an
    interrupted process had appended before; what follows them is cut off.

    Raises :class:`~tide.errors.TideError` if these ``n`` rows are not there, and if the file cannot be written.
    """

    def __init__(self, path: Path, name: str, row: tuple[int, ...], dtype: Any, n: int = 0) -> None:
        self.path, self.name, self.row, self.dtype = path, name, row, np.dtype(dtype).newbyteorder("<")
        self.n = n
        self._bytes = self.dtype.itemsize * prod(row)
        if n:
            self._check()
        with writing(path):
            self._file = path.open("r+b" if n else "w+b")
            self._file.truncate(_HEADER + n * self._bytes)
            self._say(0)
            self._file.seek(0, os.SEEK_END)

    def _check(self) -> None:
        """That the file is one of this name and kind, and that the rows which are kept are in it."""
        there = Rows(self.path, self.name)  # of a header that may say 0 rows
        there.close()
        if (there.start, there.shape[1:], there.dtype) != (_HEADER, self.row, self.dtype):
            raise TideError(f"{self.path} holds other rows of {self.name}; make the index again")
        if self.path.stat().st_size < _HEADER + self.n * self._bytes:
            raise TideError(f"{self.path} is cut short; make the index again")

    def append(self, rows: np.ndarray) -> None:
        """``rows [n, *row]``, cast to the file's type."""
        if rows.shape[1:] != self.row:
            raise TideError(f"rows of {self.name} are {list(rows.shape[1:])}, not {list(self.row)}; give rows of that")
        with writing(self.path):
            self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.n += len(rows)

    def flush(self) -> None:
        """Puts what was appended on disk."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Writes how many rows there are; the file is whole from then on."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())  # the rows are there before the header says so
            self._say(self.n)
            self._file.close()
            sync(self.path)

    def abandon(self) -> None:
        """Closes the file as it is, for a process that will append to it later."""
        with suppress(OSError):  # a full disk; what is missing is found by who goes on
            self._file.close()

    def _say(self, n: int) -> None:
        entry = {"dtype": _NAMES[self.dtype], "shape": [n, *self.row], "data_offsets": [0, n * self._bytes]}
        text = json.dumps({self.name: entry}, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8))

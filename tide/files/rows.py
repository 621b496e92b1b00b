"""Tensors of which only a few rows are read or appended at a time, in safetensors files of one tensor each.

Rows are read by position, not mapped, so that what was read does not stay in the memory of a process that serves for
days. A file that grows has a header of fixed length, which is written again with the number of rows when it is closed.
"""

from __future__ import annotations

import json
import os
import struct
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

    ``rows[3:5]`` and ``rows[[7, 2]]`` are arrays ``[rows, *shape[1:]]``, ``rows[3]`` is one row. Raises
    :class:`~tide.errors.TideError` for a file that is missing, damaged or cut short, or lacks the tensor.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
            start, about = _header(self._file.fileno())
            found = about[name]
            self.shape: tuple[int, ...] = tuple(found["shape"])
            self.dtype = np.dtype(_KINDS[found["dtype"]])
            self._start = start + int(found["data_offsets"][0])
            size = self.dtype.itemsize * prod(self.shape)
            whole = (
                self._start + size <= path.stat().st_size
                and found["data_offsets"][1] - found["data_offsets"][0] == size
            )
        except FileNotFoundError:
            raise TideError(f"{path} does not exist; make the index again") from None
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise TideError(f"{path} is not a readable safetensors file with {name}; make the index again") from error
        if not whole or not self.shape:
            raise TideError(f"{path} is cut short; make the index again")
        self._row = self.dtype.itemsize * prod(self.shape[1:])

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
        at = self._start + first * self._row
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


class GrowingRows:
    """A safetensors file of one tensor ``name [rows, *row]`` to which rows are appended.

    Until :meth:`close` its header says that it has no rows. ``n`` rows of an existing file are kept, those that an
    interrupted process had appended before; what follows them is cut off.
    """

    def __init__(self, path: Path, name: str, row: tuple[int, ...], dtype: Any, n: int = 0) -> None:
        self.path, self.name, self.row, self.dtype = path, name, row, np.dtype(dtype).newbyteorder("<")
        self.n = 0
        self._bytes = self.dtype.itemsize * prod(row)
        self._file = path.open("r+b" if n else "w+b")
        if n:
            if path.stat().st_size < _HEADER + n * self._bytes:
                raise TideError(f"{path} is cut short; make the index again")
            self.n = n
        self._file.truncate(_HEADER + self.n * self._bytes)
        self._say(0)
        self._file.seek(0, os.SEEK_END)

    def append(self, rows: np.ndarray) -> None:
        """``rows [n, *row]``, cast to the file's type."""
        if rows.shape[1:] != self.row:
            raise TideError(f"rows of {self.name} are {list(rows.shape[1:])}, not {list(self.row)}")
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())
        self.n += len(rows)

    def flush(self) -> None:
        """Puts what was appended on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._say(self.n)
        self._file.close()
        sync(self.path)

    def abandon(self) -> None:
        """Closes the file as it is, for a process that will append to it later."""
        self._file.close()

    def _say(self, n: int) -> None:
        entry = {"dtype": _NAMES[self.dtype], "shape": [n, *self.row], "data_offsets": [0, n * self._bytes]}
        text = json.dumps({self.name: entry}, separators=(",", ":")).encode()
        self._file.seek(0)
        self._file.write(struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8))

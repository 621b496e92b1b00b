"""TensorBoard's event files, written in this thread: a full disk ends the curves, not the training."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_NUMBERS = itertools.count()


class Curves:
    """Writes scalars by step to a new event file in ``folder``.

    The file voids what earlier files hold from ``step`` on: a run that was killed logged it after its last checkpoint.
    A failure to write gives one warning; everything written before stays readable.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}.{os.getpid()}.{next(_NUMBERS)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / name).open("wb", buffering=0)
        except OSError as error:
            self._end(error)
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, values: Mapping[str, float], step: int) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        event.wall_time = time.time()
        start = self._file.tell()
        try:
            RecordWriter(_Whole(self._file)).write(event.SerializeToString())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            self._end(error)

    def _end(self, error: OSError) -> None:
        self.close()
        warnings.warn(
            f"the curves in {self.folder} end here ({error.strerror or error}); the training continues, and "
            "training.json holds them, too",
            stacklevel=2,
        )


class _Whole:
    """A file that writes all bytes of a call, or raises."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

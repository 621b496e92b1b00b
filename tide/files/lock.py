"""One process at a time may write to a folder, or to a file that several share."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from tide.errors import TideError
from tide.files.folders import make_folder, remove_leftovers

LOCK = ".lock"
#: Seconds to wait for others that hold a file: each holds it as long as it takes to add some lines.
WAIT = 60.0


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds ``folder``, which is made if it is missing, for this process alone while the block runs.

    The operating system releases the lock when the process ends, however it ends. Half-written files of killed
    processes are removed. Raises :class:`~tide.errors.TideError`, naming the other process, if the folder is
    locked, also by this process: two writers in one process would overwrite each other too.
    """
    path = folder / LOCK
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    try:
        make_folder(folder)
        lock.acquire()
    except filelock.Timeout:
        raise TideError(f"{folder} is being written by {_holder(path)}; wait for it or choose another folder") from None
    except OSError as error:
        raise TideError(f"{folder} cannot be locked ({error.strerror or error}); choose another folder") from error
    with _held(lock, path):
        remove_leftovers(folder)
        yield


@contextmanager
def lock_file(file: Path, seconds: float = WAIT) -> Iterator[None]:
    """Holds ``file``, which need not exist, for this thread alone while the block runs; waits while another holds it.

    The lock is a file beside it, ``.NAME.lock``, so that a program which writes to the whole folder
    (:func:`lock_folder`) is not in the way. The operating system releases it when the process ends, however it ends.
    Raises :class:`~tide.errors.TideError` if the folder is missing or cannot be written, and, naming the other process,
    if the file is not free after so many ``seconds``.
    """
    path = file.with_name(f".{file.name}{LOCK}")
    lock = filelock.FileLock(path, timeout=seconds, thread_local=False)
    if not file.parent.is_dir():  # filelock would make it
        raise TideError(f"the folder {file.parent} does not exist; check the path")
    try:
        lock.acquire(poll_interval=0.01)
    except filelock.Timeout:
        raise TideError(f"{file} is being written by {_holder(path)}; wait for it and try again") from None
    except OSError as error:
        raise TideError(f"{file} cannot be locked ({error.strerror or error}); check the folder") from error
    with _held(lock, path):
        yield


@contextmanager
def _held(lock: filelock.BaseFileLock, path: Path) -> Iterator[None]:
    """Signs the acquired ``lock`` and gives it back after the block."""
    try:
        _sign(path)
        yield
    finally:
        # While it is held: whoever opened this file meanwhile finds it gone and starts afresh.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


def _sign(path: Path) -> None:
    """Writes into the lock's file who holds it. This only helps the reader of a message, so failing is harmless."""
    with contextlib.suppress(OSError):
        path.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}), encoding="utf-8")


def _holder(path: Path) -> str:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        pid, host = int(said["pid"]), str(said["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if host != platform.node():
        return f"process {pid} on {host}"
    return "this process already" if pid == os.getpid() else f"process {pid}"

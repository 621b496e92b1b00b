"""One process at a time may write to a folder."""

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
    try:
        _sign(path)
        remove_leftovers(folder)
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

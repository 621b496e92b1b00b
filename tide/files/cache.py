"""Local copies of files at URLs, within a bounded space that several processes share."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from tide.checks import n_bytes
from tide.errors import TideError
from tide.files.folders import make_folder
from tide.files.remote import RemotePath
from tide.files.tensors import file_digest

#: What the copies may take unless ``TIDE_CACHE_SIZE`` says otherwise.
CACHE_BYTES = 100 * 10**9
#: The share of a disk's free space that they leave to others.
_SPARE = 0.1
#: The end of the name of a file that is being fetched, and the seconds after which its process must have been killed.
_ARRIVING = ".part"
_KILLED = 3600


def cache_folder() -> Path:
    """Where copies of remote shards are kept: ``TIDE_CACHE``, or ``~/.cache/tide/stores``."""
    return Path(os.environ.get("TIDE_CACHE") or "~/.cache/tide/stores").expanduser()


def cache_limit() -> int:
    """The most bytes that copies of shards may take: ``TIDE_CACHE_SIZE``, by default :data:`CACHE_BYTES` or what the
    disk has to spare, whichever is less.

    Raises :class:`~tide.errors.TideError` for a size that is none.
    """
    if asked := os.environ.get("TIDE_CACHE_SIZE"):
        try:
            return n_bytes(asked)
        except TideError as error:
            raise TideError(f"TIDE_CACHE_SIZE: {error}") from None
    folder = make_cache()
    free = shutil.disk_usage(folder).free
    return min(CACHE_BYTES, sum(size for _, size, _ in _copies(folder)) + int((1 - _SPARE) * free))


def make_cache() -> Path:
    """The folder of the copies; it is made if it is missing."""
    folder = cache_folder() / "shards"
    try:
        make_folder(folder)
    except OSError as error:
        raise TideError(f"{folder} cannot be written ({error.strerror or error}); set TIDE_CACHE") from None
    return folder


def fetched(remote: RemotePath, size: int, sha256: str) -> Path:
    """A local copy of a remote file of ``size`` bytes, checked when it arrives.

    Copies are named by their contents, so several processes share them. The least recently used are removed first;
    a process that has mapped one can read it on, because a mapping keeps a file that has no name any more.

    Raises :class:`~tide.errors.TideError` if the file is missing, is not the one that its list names, or is larger than
    the cache.
    """
    folder = make_cache()
    path = folder / f"{sha256}.safetensors"
    try:
        if path.stat().st_size == size:
            os.utime(path)  # it was used now
            return path
    except FileNotFoundError:
        pass
    _make_room(folder, size, remote)
    handle, name = tempfile.mkstemp(prefix=f"{sha256[:16]}-", suffix=_ARRIVING, dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        _download(remote, temporary, size, sha256)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _download(remote: RemotePath, to: Path, size: int, sha256: str) -> None:
    remote.download(to)
    found = to.stat().st_size
    fault = f"{found} bytes, not {size}" if found != size else "another SHA-256" if file_digest(to) != sha256 else None
    if fault is not None:
        remedy = "remove it there and run `tide collect --resume`"
        raise TideError(f"{remote} is not the file that the manifest lists ({fault}); {remedy}")


def _copies(folder: Path) -> list[tuple[float, int, Path]]:
    """When each file of the cache was used last, its size and its path. Others may remove files meanwhile."""
    found = []
    for path in folder.iterdir():
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        found.append((about.st_mtime, about.st_size, path))
    return found


def _make_room(folder: Path, size: int, remote: RemotePath) -> None:
    """Removes the copies that were not used for longest until ``size`` further bytes fit."""
    limit = cache_limit()
    if size > limit:
        raise TideError(f"{remote} takes {size} bytes and the cache in {folder} {limit}; raise TIDE_CACHE_SIZE")
    copies = sorted(_copies(folder))
    used = sum(each for _, each, _ in copies)
    for last_used, each, path in copies:
        if used + size <= limit:
            return
        if path.suffix == _ARRIVING and time.time() - last_used < _KILLED:
            continue
        path.unlink(missing_ok=True)
        used -= each


def staging_folder(remote: RemotePath) -> Path:
    """The local folder by way of which the folder at a URL is written."""
    return cache_folder() / "staging" / hashlib.sha256(str(remote).encode()).hexdigest()[:16]

"""Files and folders at URLs (``s3://``, ``gs://``, ``hf://``, ``memory://`` ...) by fsspec.

A connection that breaks is tried again three times with growing waits; what fails for good is told in one line.
"""

from __future__ import annotations

import errno
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from tide.errors import TideError
from tide.files.folders import new_folders
from tide.files.reading import read_text
from tide.files.writing import write_json
from tide.messages import one_line

#: Seconds before each further attempt.
WAITS = (1.0, 3.0, 9.0)

#: ``s3://`` or a chain of file systems, ``simplecache::s3://``; a single letter is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(?:::[A-Za-z][A-Za-z0-9+.-]+)*://")
#: Errors of drivers that mean that nobody is signed in, by the names of their classes.
_UNSIGNED = (
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"),  # s3fs
    *("DefaultCredentialsError", "LocalTokenNotFoundError", "ClientAuthenticationError"),  # gcsfs, hf, adlfs
)

T = TypeVar("T")


@dataclass(frozen=True)
class RemotePath:
    """A file or folder at a URL, with as much of a :class:`~pathlib.Path` as stores need.

    Every method raises :class:`~tide.errors.TideError` in one line for an unknown protocol, a driver that is not
    installed, missing credentials or rights, and a connection that stays broken.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.url.rstrip("/").rpartition("/")[0])

    def resolve(self) -> RemotePath:
        """Itself: a URL depends on no current folder."""
        return self

    def read_text(self) -> str | None:
        """The text of the file; None if there is none."""
        try:
            return _attempt(self.url, lambda files, path: files.cat_file(path)).decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise TideError(f"{self} is not UTF-8 text ({error}); it may be damaged, make it again") from None

    def listing(self) -> dict[str, int | None]:
        """Name -> size of every file in the folder, None for a folder; nothing if it does not exist."""

        def ls(files: Any, path: str) -> list[dict[str, Any]]:
            files.invalidate_cache()
            return files.ls(path, detail=True)

        try:
            found = _attempt(self.url, ls)
        except FileNotFoundError:
            return {}
        names = ((each["name"].rstrip("/").rpartition("/")[2], each) for each in found)
        return {name: None if each["type"] == "directory" else int(each["size"] or 0) for name, each in names}

    def download(self, to: Path) -> None:
        """Copies the file to a local path, and checks that all of it arrived."""

        def get(files: Any, path: str) -> None:
            files.get_file(path, str(to))
            _check_arrived(to.stat().st_size, files.info(path)["size"])

        try:
            _attempt(self.url, get)
        except FileNotFoundError:
            raise TideError(f"{self} does not exist; copy the folder again, or collect again") from None

    def upload(self, file: Path) -> None:
        """Copies a local file here, and checks that all of it arrived."""

        def put(files: Any, path: str) -> None:
            files.put_file(str(file), path)
            files.invalidate_cache()
            _check_arrived(files.info(path)["size"], file.stat().st_size)

        try:
            _attempt(self.url, put, "written")
        except FileNotFoundError as error:
            raise TideError(f"{self} cannot be written ({_said(error)}); check the bucket and the folder") from None

    def check_writable(self) -> None:
        """Raises unless a file can be written into this folder: a small one is, and removed again."""
        probe = self / f".{uuid4().hex}.tmp"
        write_json_at(probe, {})
        probe.remove()

    def remove(self) -> None:
        """Removes the file, if there is one."""
        try:
            _attempt(self.url, lambda files, path: files.rm_file(path), "removed")
        except FileNotFoundError:
            return


def _check_arrived(n: int, of: int) -> None:
    if n != of:
        raise ConnectionError(f"{n} of {of} bytes arrived")


#: Where a store is: a local folder or a URL.
Place = Path | RemotePath
#: Of a local folder come local paths.
P = TypeVar("P", Path, RemotePath, Place)


def place_of(path: str | Path | RemotePath) -> Place:
    """A local path, or a remote one for a URL; ``file://`` is a local path."""
    if isinstance(path, RemotePath):
        return path
    if isinstance(path, str) and _URL.match(path) and not path.startswith("file://"):
        return RemotePath(path)
    return Path(path.removeprefix("file://") if isinstance(path, str) else path)


def text_at(path: Place) -> str | None:
    """The text of a file anywhere; None if there is no such file."""
    if isinstance(path, RemotePath):
        return path.read_text()
    return read_text(path) if path.exists() else None


def write_json_at(path: Place, data: object) -> None:
    """Writes ``data`` as JSON in one step, anywhere."""
    if isinstance(path, Path):
        write_json(path, data)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / path.name, data)
        path.upload(Path(folder) / path.name)


@contextmanager
def writable(path: str | Path | RemotePath) -> Iterator[None]:
    """Finds a place that cannot be written before any work is done: a folder is made
    (:func:`~tide.files.new_folders`), and a file written to a URL."""
    place = place_of(path)
    if isinstance(place, RemotePath):
        place.check_writable()
        yield
    else:
        with new_folders(place):
            yield


def folders_in(folder: P) -> dict[str, P]:
    """The folders in a folder anywhere, by name."""
    if isinstance(folder, RemotePath):
        names = [name for name, size in folder.listing().items() if size is None]
    else:
        names = [each.name for each in folder.glob("*") if each.is_dir()]
    return {name: folder / name for name in names}


def _attempt(url: str, act: Callable[[Any, str], T], done: str = "read") -> T:
    """``act(file system, path)``, repeated while the connection breaks.

    Raises :class:`FileNotFoundError`, which callers explain, and :class:`~tide.errors.TideError`.
    """
    for wait in (*WAITS, None):
        try:
            return act(*_opened(url))
        except FileNotFoundError:
            raise
        except Exception as error:
            if not _is_drivers(error):
                raise
            lasting = _lasting(error, url, done)
            if lasting is not None or wait is None:
                raise TideError(lasting or f"{url} cannot be {done} ({_said(error)}); try again later") from None
        time.sleep(wait)
    raise AssertionError


def _lasting(error: Exception, url: str, done: str) -> str | None:
    """The line for an error that another attempt does not mend."""
    if type(error).__name__ in _UNSIGNED:
        return f"{url} needs credentials, and none were found; sign in as {_driver(url)} asks"
    if isinstance(error, PermissionError):
        return f"{url} cannot be {done} ({_said(error)}); check your rights to it"
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return f"{url} cannot be {done} ({_said(error)}); check the path"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{url} cannot be {done}, because this machine's disk is full; free some space or set TIDE_CACHE"
    return None


def _said(error: Exception) -> str:
    return one_line(error, 120)


def _is_drivers(error: Exception) -> bool:
    """Whether the machine or a driver raised the error; one of Python's own kinds, such as TypeError, is a bug."""
    if isinstance(error, TideError):
        return False
    return isinstance(error, OSError) or type(error).__module__ != "builtins"


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it. fsspec keeps one for each process and thread."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError:
        raise TideError(f"{url} needs the package {_driver(url)}; install it") from None
    except ValueError as error:
        raise TideError(f"{url} cannot be opened ({_said(error)}); use s3://, gs://, hf:// or a path") from None


def _driver(url: str) -> str:
    """The package that serves a URL's protocol."""
    from fsspec.registry import known_implementations

    found = _URL.match(url)
    package = known_implementations.get(found[1] if found else "", {}).get("class", "").partition(".")[0]
    return "aiohttp" if package == "fsspec" else package or "fsspec"

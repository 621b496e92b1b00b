"""Folders that survive power loss; only empty ones that this process made are ever removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tide.errors import TideError

#: The name of the folder in which a file is written before it is renamed into place; ``*`` makes it unique.
TEMPORARY = ".{name}.{pid}-*.tmp"
_TEMPORARY = re.compile(r"\..+\.\d+-\w+\.tmp")


def sync(path: Path) -> None:
    """Flushes the file's content to disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes the names in ``folder`` to disk, where the file system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed, or Windows, which opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> list[Path]:
    """Makes ``folder`` and its parents where they are missing; returns those that it made, the outermost first."""
    missing = [folder, *folder.parents]
    made: list[Path] = []
    try:
        for each in reversed(missing[: next((i for i, path in enumerate(missing) if path.is_dir()), len(missing))]):
            with contextlib.suppress(FileExistsError):
                each.mkdir()
                made.append(each)
        for each in made:
            sync_folder(each.parent)
        if not folder.is_dir():
            raise FileExistsError(errno.EEXIST, "a file of this name is in the way", str(folder))
    except BaseException:
        remove_empty(made)
        raise
    return made


def remove_empty(folders: list[Path]) -> None:
    """Removes those of ``folders``, the outermost first, that are empty."""
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # somebody's files are in it, or it is gone
            folder.rmdir()


@contextmanager
def new_folders(*folders: Path) -> Iterator[None]:
    """Makes the folders at once, so that a place that cannot be written is found before any work is done.

    If the block raises, those that were made here and are still empty are removed, and nothing else.
    Raises :class:`~tide.errors.TideError` for a folder that cannot be made or written.
    """
    made: list[Path] = []
    try:
        for folder in folders:
            made += _usable(folder)
        yield
    except BaseException:
        remove_empty(made)
        raise


def _usable(folder: Path) -> list[Path]:
    """Makes the folder if it is missing; returns the folders that were made."""
    made: list[Path] = []
    try:
        made = make_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        remove_empty(made)
        raise TideError(f"{folder} cannot be written ({error.strerror or error}); choose another folder") from error
    return made


def remove_temporary(folder: Path) -> None:
    """Removes a folder of :data:`TEMPORARY`'s name and the files in it; leaves what cannot be removed."""
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process left half-written in ``folder``; call it while holding the folder's lock."""
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            if _TEMPORARY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                remove_temporary(path)

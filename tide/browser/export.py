"""A folder that any static host can serve: the page and everything that it reads, without the server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from tide.browser.files import LISTED, STATIC, Files, files_of
from tide.browser.runs import Run
from tide.errors import TideError
from tide.files import lock_folder, new_folders, read_json
from tide.files.folders import remove_empty, sync, sync_folder
from tide.messages import readable_size

#: Within the folder in which an export is made: the new one, and the former one while it is replaced.
_NEW, _FORMER = "new", "former"


def export(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    limit: int | None = None,
    notes: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Writes ``folder``, which shows ``runs`` from any static host, also below a path.

    It is made beside the folder and renamed, so that the folder holds a whole export at every moment. An earlier export
    is replaced; a folder of anything else is refused. Nothing in it names folders of this machine.

    Args:
        runs: of :func:`~tide.browser.runs.find_runs`, all with an index.
        folder: to be made; it may exist if it is empty or an earlier export.
        limit: how many of the most active latents of each run have all their pictures; the others have the top images
            of their cards alone. None gives all of them all.
        notes: also what people noted, which may be private; their names of latents and stars are always there.
        say: prints a line: how many files and bytes, before they are written.

    Raises:
        TideError: a run has no index or a damaged one, the folder holds something else, or it cannot be written.
    """
    if limit is not None and limit < 1:
        raise TideError(f"a limit of {limit} latents leaves none; give 1 or more")
    given, folder = folder, Path(folder).resolve()
    _check_indexes(runs)
    files = files_of(runs, limit=limit, notes=notes)
    _check_replaceable(folder)
    n = sum(each.n for each in files)
    say(f"Writing {n:,} files, about {readable_size(sum(each.about for each in files))}, to {given}")
    with _beside(folder) as work:
        try:
            _write(files, work / _NEW, n)
            _check_replaceable(folder)  # hours may have passed
            _replace(work, folder)
        except OSError as error:
            raise TideError(
                f"{given} could not be written ({error.strerror or error}); free some space or choose another folder"
            ) from error


def _check_indexes(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.state != "ready":
            raise TideError(f"{run.folder} has no index; make one: tide browse {run.folder}, or tide atlas --index")


def _check_replaceable(folder: Path) -> None:
    """Raises :class:`~tide.errors.TideError` if ``folder`` holds anything but an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise TideError(f"{folder} is a file; give a folder")
    there = {path.name for path in folder.iterdir()}
    if there and not _is_export(folder):
        raise TideError(f"{folder} is not empty and not an earlier export; give a new folder, or empty this one")
    # It is replaced as a whole: somebody's own files, such as a repository's, would be lost.
    own = {"api", ".nojekyll", *(path.name for path in STATIC.iterdir())}
    if there and (others := sorted(there - own)):
        raise TideError(f"{folder} also holds {others[0]}, which is not of an export; move it, or give another folder")


def _is_export(folder: Path) -> bool:
    path = folder / LISTED
    try:
        found = read_json(path) if path.is_file() else None
    except TideError:
        return False
    return isinstance(found, dict) and found.get("static") is True


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, held for this process, in which an export is made; nothing of it stays."""
    work = folder.with_name(f".{folder.name}.unfinished")
    with new_folders(folder.parent):
        try:
            with lock_folder(work):
                _clear(work)  # what a killed process left
                try:
                    yield work
                finally:
                    _clear(work)
        finally:
            remove_empty([work])


def _clear(work: Path) -> None:
    for name in (_NEW, _FORMER):
        shutil.rmtree(work / name, ignore_errors=True)


def _write(files: Sequence[Files], folder: Path, n: int) -> None:
    written = []
    with tqdm(total=n, unit="file", disable=None) as bar:
        for each in files:
            (folder / each.path).parent.mkdir(parents=True, exist_ok=True)
            for number in range(each.n):
                path = folder / each.path.format(number)
                path.write_bytes(each.make(number))
                written.append(path)
                bar.update()
    for path in written:  # afterwards: by then the system has written most of them
        sync(path)
    for each_folder in {path.parent for path in written}:
        sync_folder(each_folder)


def _replace(work: Path, folder: Path) -> None:
    if folder.exists():
        folder.rename(work / _FORMER)
    try:
        (work / _NEW).rename(folder)
    except OSError:
        if (work / _FORMER).exists():
            os.rename(work / _FORMER, folder)
        raise
    sync_folder(folder.parent)

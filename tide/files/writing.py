"""Writing files that are complete at every moment, even after power loss."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tide.errors import TideError
from tide.files.folders import TEMPORARY, make_folder, remove_temporary, sync, sync_folder

#: Writes one file to a given path.
Write = Callable[[Path], Any]


def replace_files(files: dict[Path, Write]) -> None:
    """Writes every file beside its final place, then renames all of them.

    The former files stay until every new one is complete and on disk: each file is synced before it is renamed, and its
    folder before this returns. After a power loss each name holds the former file or the new one, and a list of files
    that is written after the files never names one that is missing.

    Raises :class:`~tide.errors.TideError` if a file cannot be written; all stay as they were, unless the renaming
    itself fails. No half-written file is left, except after a kill
    (:func:`~tide.files.remove_leftovers`).
    """
    written: dict[Path, Path] = {}
    path = next(iter(files))
    try:
        for path, write in files.items():
            written[path] = _temporary(path)
            _write(write, written[path])
        for path, temporary in written.items():
            temporary.replace(path)
        for path in files:
            sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise TideError(f"{path} could not be written ({reason}); free some space or choose another folder") from error
    finally:
        for temporary in written.values():
            remove_temporary(temporary.parent)


def _temporary(path: Path) -> Path:
    """The new file's path in a folder of its own, which also catches what a library leaves half-written."""
    make_folder(path.parent)
    name = TEMPORARY.format(name=path.name, pid=os.getpid())
    prefix, suffix = name.split("*")
    return Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=path.parent)) / path.name


def _write(write: Write, temporary: Path) -> None:
    # A file made by open() has the mode that the umask and the folder ask for; safetensors makes its own with 0600.
    temporary.touch()
    mode = temporary.stat().st_mode
    write(temporary)
    temporary.chmod(mode & 0o777)
    sync(temporary)


def replace_file(path: Path, write: Write) -> None:
    """:func:`replace_files` of one file.

    ``path`` gets what ``write`` writes.
    """
    replace_files({path: write})


def finite(value: Any) -> Any:
    """``value`` with None, JSON's null, for every number that is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(data: object) -> str:
    """The :func:`finite` part of ``data`` as JSON, as every file of it here is written."""
    return json.dumps(finite(data), indent=2, allow_nan=False) + "\n"


def json_writer(data: object) -> Write:
    """A function that writes :func:`json_text` of ``data``, for :func:`replace_files`."""
    text = json_text(data)
    return lambda path: path.write_text(text, encoding="utf-8")


def write_json(path: Path, data: object) -> None:
    """Writes ``data``, replacing the file in one step.

    ``path`` is the file.
    """
    replace_file(path, json_writer(data))

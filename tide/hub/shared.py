"""What of a folder is sent to the Hub: a checkpoint's own files and what describes them, without paths of here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tide.files import json_text, parse_json, read_text
from tide.files.per_block import found_blocks
from tide.hub.download import CONFIG, DESCRIBING, FILES
from tide.hub.paths import without_paths
from tide.runs import FILE, contents

#: Kinds of files that show results (:data:`tide.runs.FileKind`); others stay here.
SHOWN = ("picture", "chart")
#: Bytes of the largest picture that is sent, and how many are sent of one folder.
MOST_BYTES = 2 * 2**20
MOST_PICTURES = 4


def checkpoints(folder: Path) -> dict[str, Path]:
    """The checkpoints of a folder by their folders in it: a single one's under "", those of a set under ``block-N``."""
    if (folder / CONFIG).is_file():
        return {"": folder}
    return {each.name: each for each in found_blocks(folder).values() if (each / CONFIG).is_file()}


def shared_files(folder: Path) -> dict[str, Path | bytes]:
    """Path in the repository -> file or content, of the checkpoint or the set of them in ``folder``.

    ``config.json``, ``run.json`` and ``training.json`` go without absolute paths
    (:func:`~tide.hub.paths.without_paths`), ``run.json`` also without earlier runs. Names of latents are people's text
    and stay as they are. Optimiser states, logs and
    everything else stay here.
    """
    found: dict[str, Path | bytes] = {}
    for name, path in {"": folder, **checkpoints(folder)}.items():
        for file in FILES:
            if (path / file).is_file() and file not in DESCRIBING:
                found[f"{name}/{file}".lstrip("/")] = _shared(path / file)
    return found


def _shared(file: Path) -> Path | bytes:
    if file.suffix != ".json":
        return file
    data: Any = without_paths(parse_json(read_text(file), str(file)))
    if file.name == FILE:
        data.pop("earlier", None)
    return json_text(data).encode()


def shown_pictures(folder: Path, say: Callable[[str], None] = print) -> dict[str, Path]:
    """Name -> file, of the first pictures and charts that a folder of results lists; ``say`` is told of those that are
    too large."""
    holds = contents(folder)
    names = [] if holds is None else [name for name, kind in holds.files.items() if kind in SHOWN]
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if not path.is_file() or len(found) == MOST_PICTURES:
            continue
        if path.stat().st_size > MOST_BYTES:
            say(f"{path} is larger than {MOST_BYTES} bytes and is not sent")
            continue
        found[name] = path
    return found

"""A checkpoint from the Hub: in its cache, or as a folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files import json_writer, lock_folder, new_folders, replace_files
from tide.hub import FILES, Repository, checkpoints, fetched
from tide.sae.checkpoint import is_tide, load_config
from tide.sae.published import lacks
from tide.sae.sets import members

#: Says where a folder was pulled from.
ORIGIN = "hub.json"


def pull(
    name: str,
    out: str | Path | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetches a checkpoint, or a set of several blocks', from the Hub, and returns its folder.

    ::

        adapter = tide.load_adapter("PixArt-alpha/PixArt-XL-2-1024-MS")
        sae = tide.load_sae(tide.pull("me/tide-pixart", subfolder="block-26"), adapter)

    Only :data:`tide.hub.FILES` are fetched: weights as safetensors, JSON, the card and the curves. No code, no pickle.

    Args:
        name: ``owner/name``.
        out: a new folder to copy it to, with ``hub.json``, which says where it came from; default the folder in the
            cache, which is not to be written to.
        subfolder: of the repository, such as ``block-26``.
        revision: a branch, a tag or a commit.
        token: for private repositories; default the one that `hf auth login` saved, or ``HF_TOKEN``.
        cache_dir: default that of ``huggingface_hub`` (``HF_HOME``).
        local_files_only: only what the cache has, as ``HF_HUB_OFFLINE=1`` asks for everywhere.

    Raises:
        TideError: what :func:`tide.hub.fetched` refuses; the repository holds no checkpoint there, or a damaged one;
            ``out`` holds one of its files already.
    """
    repository = Repository(name, subfolder, revision)
    options: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    if out is None:
        return _checked(fetched(repository, **options), repository)
    place = Path(out)
    _check_free(place, [place / each for each in (*FILES, ORIGIN, *checkpoints(place))])
    with new_folders(place), lock_folder(place):
        _copy(_checked(fetched(repository, **options), repository), place, repository)
    return place


def _checked(folder: Path, repository: Repository) -> Path:
    """The folder, all of whose checkpoints have configurations that fit their weights."""
    found = checkpoints(folder)
    try:
        ours = bool(found) and ("" not in found or is_tide(folder))
    except TideError as error:
        raise _not_whole(repository, error) from error
    if not ours:
        raise TideError(lacks(folder, repository))
    try:
        members(folder)
        for path in found.values():
            load_config(path)
    except TideError as error:
        raise _not_whole(repository, error) from error
    return folder


def _not_whole(repository: Repository, error: TideError) -> TideError:
    return TideError(f"{repository} holds a checkpoint that is not whole: {error}")


def _check_free(out: Path, files: Iterable[Path]) -> None:
    if there := next((each for each in files if each.exists()), None):
        raise TideError(f"{out} already holds {there.relative_to(out)}; choose another folder")


def _copy(folder: Path, out: Path, repository: Repository) -> None:
    sources = {"": folder, **checkpoints(folder)}
    files = {out / name / file: path / file for name, path in sources.items() for file in FILES}
    _check_free(out, files)
    root = folder if repository.subfolder is None else folder.parents[len(Path(repository.subfolder).parts) - 1]
    origin = {
        "repository": repository.name,
        "subfolder": repository.subfolder,
        "revision": repository.revision,
        "commit": root.name,
    }
    replace_files(
        {
            **{place: partial(shutil.copyfile, source) for place, source in files.items() if source.is_file()},
            out / ORIGIN: json_writer(origin),
        }
    )

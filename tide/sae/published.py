"""Models on the Hub: the folder that a name stands for, and a model sent there without its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tide.errors import TideError
from tide.hub import Repository, card_of, cards, fetched, in_repository, shared_files, upload
from tide.sae.checkpoint import CONFIG, is_tide


def folder_of(path: str | Path, subfolder: str | None, revision: str | None, fetching: Mapping[str, Any]) -> Path:
    """The folder of a checkpoint: on this machine, or in the Hub's cache for ``owner/name``.

    ``fetching``: arguments of :func:`tide.hub.fetched`.

    Raises :class:`~tide.errors.TideError` for what :func:`~tide.hub.in_repository` and :func:`~tide.hub.fetched`
    refuse, and for a repository that holds no checkpoint there.
    """
    repository = in_repository(path, subfolder, revision)
    if repository is None:
        return Path(path) / (subfolder or "")
    folder = fetched(repository, **fetching)
    if not (folder / CONFIG).is_file() or not is_tide(folder):
        raise TideError(lacks(folder, repository))
    return folder


def lacks(folder: Path, repository: Repository) -> str:
    """The message for a fetched folder that is no checkpoint; names the checkpoints in it."""
    blocks = sorted(each.parent.name for each in folder.glob(f"block-*/{CONFIG}"))
    if blocks:
        return f"{repository} holds the checkpoints of {', '.join(blocks)}; give one of them as subfolder"
    return f"{repository} holds no checkpoint of TIDE; give another repository, or a subfolder that holds one"


def publish(save: Callable[[Path], None], repository: Repository, license: str | None, **options: Any) -> str:
    """Sends a model, which ``save`` writes to a folder, and a card to the Hub; ``options`` are those of
    :func:`tide.hub.upload`. Returns the commit's address."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        card = card_of(folder, repository, license=license)
        return upload(repository, shared_files(folder), cards(card), **options)

"""A run's folder to the Hub: what is sent is put together first, so that it can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.fingerprint import fingerprint
from tide.hub import Repository, card_of, cards, checkpoints, shared_files, shown_pictures, upload
from tide.hub.cards import CARD
from tide.messages import readable_size
from tide.runs import contents
from tide.sae import TIDE
from tide.sae.sets import members

#: The folder in a repository's folder that has the pictures of results.
RESULTS = "results"
CURVES = "curves.png"


@dataclass(frozen=True)
class Shared:
    """What is sent.

    Attributes:
        repository: where to.
        files: path in the repository's folder -> file here, or content.
        cards: path in the repository -> the model card there.
    """

    repository: Repository
    files: dict[str, Path | bytes]
    cards: dict[str, str]

    @property
    def card(self) -> str:
        """The one at the repository's top."""
        return self.cards[CARD]

    def __str__(self) -> str:
        """The files with their sizes, a line each."""
        files = {self.repository.within(path): _size(each) for path, each in sorted(self.files.items())}
        sizes = files | {path: len(text.encode()) for path, text in self.cards.items()}
        lines = [f"{readable_size(size):>9}  {path}" for path, size in sizes.items()]
        return "\n".join([f"to {self.repository.name}:", *lines])


def prepared(
    folder: str | Path,
    name: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    say: Callable[[str], None] = print,
) -> Shared:
    """What :func:`push` would send, without sending it.

    Args:
        folder, name, subfolder, revision, results, license, say: as for :func:`push`.

    Raises :class:`~tide.errors.TideError` for a folder that holds no whole checkpoint, results of another one, and a
    name that is none.
    """
    repository, path = Repository(name, subfolder, revision), Path(folder)
    own = _fingerprints(path)
    files, pictures = shared_files(path), {}
    if CURVES in files:
        pictures[CURVES] = "Loss and what else training logged, by step"
    folders = [Path(each) for each in results]
    for each in folders:
        _check_results(each, own)
        of = each.resolve().name
        for file, picture in shown_pictures(each, say).items():
            place = f"{RESULTS}/{of}/{file}"
            if place in files:
                raise TideError(f"two folders of results are called {of}; rename one of them")
            files[place], pictures[place] = picture, f"{of}: {Path(file).stem}"
    card = card_of(path, repository, results=folders, pictures=pictures, license=license)
    return Shared(repository, files, cards(card))


def push(
    folder: str | Path,
    name: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    results: Sequence[str | Path] = (),
    license: str | None = None,
    private: bool = False,
    message: str | None = None,
    token: str | bool | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Sends a checkpoint, or a set of several blocks', to the repository ``owner/name`` of the Hub in one commit.

    ::

        push("runs/tide", "me/tide-pixart", subfolder="block-26", results=["runs/eval"], license="apache-2.0")

    Sent are weights, configuration, names of latents, the curves and figures of the training, pictures of the results,
    and a card that is written from all of them. Optimiser states and logs stay here, and so do absolute paths. A card
    that a person wrote into the repository stays.

    Args:
        folder: what `tide train` wrote.
        name: of the repository, which is made if need be.
        subfolder: where in it.
        revision: a branch, made if need be; default ``main``.
        results: folders of commands that measured this checkpoint (`tide evaluate` and others): their figures with
            their commands, and their first pictures, go onto the card.
        license: of the weights, as the Hub abbreviates it (``apache-2.0``).
        private: the repository is made private, or is so already.
        message: of the commit.
        token: one that may write; default the one that `hf auth login` saved, or ``HF_TOKEN``.
        say: called with a line about a picture that is too large, and about a card that stays.

    Returns:
        The commit's address.

    Raises:
        TideError: what :func:`prepared` and :func:`tide.hub.upload` refuse.
    """
    shared = prepared(folder, name, subfolder=subfolder, revision=revision, results=results, license=license, say=say)
    return upload(shared.repository, shared.files, shared.cards, private=private, message=message, token=token, say=say)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _fingerprints(folder: Path) -> set[str]:
    """Those of the weights of every checkpoint in the folder, all of which are read and checked."""
    if not checkpoints(folder):
        raise TideError(f"{folder} holds no checkpoint; give the folder that `tide train` wrote")
    members(folder)
    return {fingerprint([TIDE.from_pretrained(path)]) for path in checkpoints(folder).values()}


def _check_results(folder: Path, own: set[str]) -> None:
    holds = contents(folder)
    of: dict[str, Any] = {} if holds is None else holds.autoencoder
    measured = {each["weights"] for each in (of, *of.get("blocks", {}).values()) if "weights" in each}
    if not measured:
        raise TideError(f"{folder} holds no results of a checkpoint; give a folder of `tide evaluate` or the like")
    if not measured <= own:
        raise TideError(f"{folder} holds results of another checkpoint; measure this one")

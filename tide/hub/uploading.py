"""Files into a repository of the Hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tide.errors import TideError
from tide.hub.cards import belongs
from tide.hub.names import Repository
from tide.hub.refusals import refusals
from tide.messages import one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MESSAGE = "Upload a checkpoint of TIDE"


def upload(
    repository: Repository,
    files: Mapping[str, Path | bytes],
    cards: Mapping[str, str],
    *,
    private: bool = False,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Makes the repository if it does not exist, and adds the files and the cards to it in one commit.

    A card stays that a person wrote, and at the top one that is about another folder.

    Args:
        repository: the place; a revision is a branch, made if it does not exist.
        files: path in the repository's folder -> a file here, or its content.
        cards: of :func:`tide.hub.cards.cards`.
        private: of a repository that is made now.
        message: of the commit; default :data:`MESSAGE`.
        token: one that may write; default the one that `hf auth login` saved, or the environment's ``HF_TOKEN``.

    Returns:
        The commit's address.

    Raises:
        TideError: the token may not write there or is missing, or the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if repository.revision is not None and len(repository.revision) == 40:
        raise TideError(f"{repository.revision} is a commit, which cannot change; give a branch")
    api = HfApi(token=token, library_name="tide-sae")
    with refusals(repository), _whole(repository):
        api.create_repo(repository.name, private=private or None, exist_ok=True)
        if repository.revision not in (None, "main"):
            api.create_branch(repository.name, branch=str(repository.revision), exist_ok=True)
        placed = {repository.within(path): content for path, content in files.items()}
        placed |= {path: text.encode() for path, text in cards.items() if _may_write(api, repository, path)}
        commit = api.create_commit(
            repository.name,
            operations=[CommitOperationAdd(path, content) for path, content in sorted(placed.items())],
            commit_message=message or MESSAGE,
            revision=repository.revision,
        )
    return str(commit.commit_url)


@contextmanager
def _whole(repository: Repository) -> Iterator[None]:
    """huggingface_hub reports a file that did not arrive as a RuntimeError; nothing is committed then."""
    try:
        yield
    except RuntimeError as error:
        reason = one_line(error.__cause__ or error)
        raise TideError(
            f"a file did not arrive at {repository} ({reason}); nothing was committed, push again"
        ) from error


def _may_write(api: HfApi, repository: Repository, path: str) -> bool:
    """Whether no other card is in the way of one."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        file = api.hf_hub_download(repository.name, path, revision=repository.revision)
    except LocalEntryNotFoundError:  # the Hub did not answer, so that nobody knows
        raise
    except EntryNotFoundError:
        return True
    return belongs(Path(file).read_text(encoding="utf-8", errors="replace"), repository.subfolder)

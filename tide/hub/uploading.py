"""Files into a repository of the Hub, in one commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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
_COMMIT = re.compile(r"[0-9a-f]{40}")


def upload(
    repository: Repository,
    files: Mapping[str, Path | bytes],
    cards: Mapping[str, str],
    *,
    private: bool = False,
    message: str | None = None,
    token: str | bool | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Makes the repository if it does not exist, and adds the files and the cards to it in one commit.

    A card stays that a person wrote, and at the top one that is about another folder.

    Args:
        repository: the place; a revision is a branch, made if it does not exist.
        files: path in the repository's folder -> a file here, or its content.
        cards: of :func:`tide.hub.cards.cards`.
        private: the repository is made private, or is so already.
        message: of the commit; default :data:`MESSAGE`.
        token: one that may write; default the one that `hf auth login` saved, or the environment's ``HF_TOKEN``.
        say: called with a line about a card that stays.

    Returns:
        The commit's address.

    Raises:
        TideError: the token may not write there or is missing, the Hub cannot be reached or does not take the card,
            or ``private`` is asked of a public repository.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if repository.revision is not None and _COMMIT.fullmatch(repository.revision):
        raise TideError(f"{repository.revision} is a commit, which cannot change; give a branch")
    api = HfApi(token=token, library_name="tide-sae")
    with refusals(repository), _whole(repository):
        api.create_repo(repository.name, private=private or None, exist_ok=True)
        if private and not api.model_info(repository.name).private:
            raise TideError(
                f"{repository.name} is public already; make it private in its settings, or leave private off"
            )
        if repository.revision not in (None, "main"):
            api.create_branch(repository.name, branch=str(repository.revision), exist_ok=True)
        placed = {repository.within(path): content for path, content in files.items()}
        placed |= _written(api, repository, cards, say)
        commit = api.create_commit(
            repository.name,
            operations=[CommitOperationAdd(path, content) for path, content in sorted(placed.items())],
            commit_message=message or MESSAGE,
            revision=repository.revision,
        )
    return str(commit.commit_url)


@contextmanager
def _whole(repository: Repository) -> Iterator[None]:
    """What stands in the way of sending alone; nothing is committed then. huggingface_hub reports a file that did not
    arrive as a RuntimeError, and a card that the Hub does not take as a ValueError by the Hub's answer."""
    from huggingface_hub.errors import BadRequestError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise TideError(
            f"nothing was sent to {repository}: the Hub is not asked or not reached; push with a connection and "
            "without HF_HUB_OFFLINE"
        ) from None
    except ValueError as error:
        if not isinstance(error.__cause__, BadRequestError):
            raise
        raise TideError(
            f"the Hub does not take the card for {repository} ({one_line(error)}); give license as the Hub "
            "abbreviates it, such as apache-2.0"
        ) from error
    except RuntimeError as error:
        reason = one_line(error.__cause__ or error)
        raise TideError(
            f"a file did not arrive at {repository} ({reason}); nothing was committed, push again"
        ) from error


def _written(
    api: HfApi, repository: Repository, cards: Mapping[str, str], say: Callable[[str], None]
) -> dict[str, bytes]:
    """The cards that are sent; ``say`` is told of the others."""
    sent: dict[str, bytes] = {}
    for path, text in cards.items():
        if _may_write(api, repository, path):
            sent[path] = text.encode()
        else:
            say(f"{path} of {repository.name} stays as it is: a person wrote it, or it is about another folder")
    return sent


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

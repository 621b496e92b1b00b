"""What names a checkpoint on the Hub: a repository, a folder in it, a revision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tide.errors import TideError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_NAME = re.compile(rf"{_PART}/{_PART}")
#: A repository's name is no longer on the Hub.
_LONGEST = 96


@dataclass(frozen=True)
class Repository:
    """A place on the Hub.

    Attributes:
        name: ``owner/name``.
        subfolder: a folder in it, with ``/`` between parts; default the repository itself.
        revision: a branch, a tag or a commit; default ``main``.

    Raises:
        TideError: a name or a folder that the Hub would not take.
    """

    name: str
    subfolder: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise TideError(f"{self.name!r} is not the name of a repository on the Hub; write it as owner/name")
        if self.subfolder is not None and not _plain(self.subfolder):
            raise TideError(f"{self.subfolder!r} is not a folder of a repository; write it as block-26")

    def __str__(self) -> str:
        at = f" at {self.revision}" if self.revision else ""
        return f"{self.name}{'' if self.subfolder is None else f'/{self.subfolder}'}{at}"

    def within(self, file: str) -> str:
        """The path in the repository of a file of this folder."""
        return file if self.subfolder is None else f"{self.subfolder}/{file}"


def is_name(text: str) -> bool:
    """Whether ``text`` can be a repository's name, ``owner/name``."""
    odd = ".." in text or "--" in text or text.endswith(".git")
    return len(text) <= _LONGEST and _NAME.fullmatch(text) is not None and not odd


def _plain(folder: str) -> bool:
    parts = PurePosixPath(folder).parts
    whole = bool(parts) and folder == "/".join(parts) and not any(each in ("/", "..", ".") for each in parts)
    return whole and not set(folder) & set("*?[]")  # which would name other folders as well


def in_repository(path: str | Path, subfolder: str | None = None, revision: str | None = None) -> Repository | None:
    """The repository that ``path`` names, or None where it is a path on this machine.

    A ``Path`` always is one, and so is text whose first part is a folder here: ``runs/tide`` beside a folder ``runs``.
    ``subfolder`` and ``revision`` are those of the repository.

    Raises :class:`~tide.errors.TideError` for a path on this machine with a ``revision``.
    """
    here = isinstance(path, Path) or not is_name(path) or Path(path.split("/")[0]).is_dir()
    if not here:
        return Repository(str(path), subfolder, revision)
    if revision is not None:
        raise TideError(f"{path} is a folder on this machine, which has no revisions; leave revision off")
    return None

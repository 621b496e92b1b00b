"""The files of an image folder: its pictures, the captions beside them, and the lists of captions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp")
#: Lists of captions; where one folder holds several, an earlier one of these wins.
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
#: Pictures that are not read, and are counted.
OTHER_SUFFIXES = (
    *(".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".tga", ".ppm", ".pgm", ".psd"),
    *(".raw", ".dng", ".cr2", ".nef", ".arw", ".ico", ".eps", ".exr", ".apng", ".jpx", ".j2k"),
)


@dataclass
class Files:
    """Paths below ``root``, with "/" between their parts.

    ``pictures`` are sorted by their parts; ``unread`` counts the pictures of other formats by their suffix; ``others``
    are the remaining files, which are pictures only if a list names them.
    """

    root: Path
    pictures: list[str] = field(default_factory=list)
    texts: set[str] = field(default_factory=set)
    lists: list[str] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    unread: Counter[str] = field(default_factory=Counter)

    def path(self, name: str) -> Path:
        return self.root / name


def files_of(root: Path, suffixes: Collection[str] = SUFFIXES) -> Files:
    """The files of ``root`` and of the folders in it, through links as well. Those with one of ``suffixes`` are what is
    read.

    Hidden files and folders (``._a.png`` and ``__MACOSX`` of macOS, ``@eaDir`` of a NAS) are no pictures of the user's.
    """
    found = Files(root)
    for name in _walk(root):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in suffixes:
            found.pictures.append(name)
        elif suffix == ".txt":
            found.texts.add(name)
        elif name.rpartition("/")[2].lower() in METADATA:
            found.lists.append(name)
        elif suffix in OTHER_SUFFIXES or suffix in SUFFIXES:
            found.unread[suffix] += 1
        else:
            found.others.add(name)
    found.pictures.sort(key=lambda name: name.split("/"))
    found.lists.sort(key=_precedence)
    return found


def below(root: Path, path: str) -> str | None:
    """Where ``path``, absolute or seen from ``root``, lies below ``root``, with "/" between the parts; None for one
    outside. Nothing is looked for on the disk."""
    top = os.path.abspath(root)
    found = os.path.relpath(os.path.join(top, path), top)
    return None if found.split(os.sep)[0] == os.pardir else PurePosixPath(found).as_posix()


def _precedence(name: str) -> tuple[int, str, int]:
    """Lists from the outermost folder to the innermost, and in a folder from the last of :data:`METADATA` to the
    first: a later one of them wins."""
    folder, _, file = name.rpartition("/")
    return folder.count("/") + bool(folder), folder, -METADATA.index(file.lower())


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root, followlinks=True):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if _is_visible(name) and not _is_loop(here / name, root))
        for name in names:
            path = here / name
            if _is_visible(name) and path.is_file():  # no pipe, and no link that leads nowhere
                yield path.relative_to(root).as_posix()


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name not in ("__MACOSX", "@eaDir")


def _is_loop(folder: Path, root: Path) -> bool:
    """Whether a folder is a link to one that led to it."""
    if not folder.is_symlink():
        return False
    above = [root, *(each for each in folder.parents if root in each.parents)]
    return folder.resolve() in {each.resolve() for each in above}

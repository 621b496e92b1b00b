"""A folder of image files as a set of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tide.errors import TideError, TideWarning
from tide.images.captions import captions_of
from tide.images.clips import CLIP_SUFFIXES, open_clip
from tide.images.decode import open_picture
from tide.images.files import METADATA, SUFFIXES, Files, files_of
from tide.images.identity import file_digest_of
from tide.images.sets import ImageSet
from tide.messages import one_line


class Folder(ImageSet):
    """The images of a folder and of its subfolders, or its ``clips`` (:mod:`tide.images.clips`), with their captions
    (:mod:`tide.images.captions`).

    Warns of captions that match no image, and of pictures in formats that are not read. Raises
    :class:`~tide.errors.TideError` for a folder that is missing or holds no images, and for faulty captions.
    """

    how_to_caption = f"write {METADATA[0]}, or a .txt file beside each image"

    def __init__(self, path: Path, shown: str, caption_column: str | None = None, *, clips: bool = False) -> None:
        if path.is_file():
            raise TideError(f"{path} is a file; give the folder that holds the images (unpack an archive first)")
        if not path.is_dir():
            raise TideError(f"{path} is not a folder; give one that holds images")
        suffixes, what = (CLIP_SUFFIXES, "clips") if clips else (SUFFIXES, "images")
        files = files_of(path, suffixes)
        captions = captions_of(files, caption_column)
        self.path, self.shown, self.notes = path, shown, captions.notes
        self.names: Sequence[str] = sorted([*files.pictures, *captions.added], key=lambda name: name.split("/"))
        self.captions = captions.of
        if not self.names:
            raise TideError(f"{path} holds no {what}{_of_others(files)}; add some ({', '.join(suffixes)})")
        for fault in [*captions.faults, *_unread(files, suffixes)]:
            warnings.warn(fault, TideWarning, stacklevel=2)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def caption(self, i: int) -> str:
        return self.captions.get(self.names[i], "")

    def digest(self, i: int) -> str:
        return file_digest_of(self.path / self.names[i], self._shown(i))

    def picture(self, i: int) -> Image.Image:
        return open_picture(self.path / self.names[i], self._shown(i))

    def frames(self, i: int, n: int) -> list[Image.Image]:
        return open_clip(self.path / self.names[i], self._shown(i), n)

    def _shown(self, i: int) -> str:
        path = str(self.path / self.names[i])
        return path if path.isprintable() else one_line(path, 1000)


def _unread(files: Files, suffixes: Sequence[str]) -> list[str]:
    if not files.unread:
        return []
    n = sum(files.unread.values())
    pictures = "picture" if n == 1 else "pictures"
    what = f"{n:,} {pictures} of {files.root} {'is' if n == 1 else 'are'} not read{_of_others(files)}"
    return [f"{what}; formats that are read: {', '.join(suffixes)}"]


def _of_others(files: Files) -> str:
    """Such as " (3 of .tif)"."""
    counts = ", ".join(f"{n} of {suffix}" for suffix, n in sorted(files.unread.items()))
    return f" ({counts})" if counts else ""

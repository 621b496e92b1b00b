"""An image as a row of a data set holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from tide.errors import TideError
from tide.images.arrays import from_array
from tide.images.clips import clip_of, open_clip
from tide.images.decode import MAX_BYTES, open_picture, to_rgb
from tide.images.identity import PIXELS, digest, file_digest_of
from tide.images.tensors import Size, n_frames_of, to_clip, to_tensor
from tide.messages import one_line


class Cell(NamedTuple):
    """One image, called ``name`` in messages: a file's bytes, a file's path, a picture, or the pictures of a clip."""

    content: bytes | Path | Image.Image | list[Image.Image]
    name: str

    def picture(self) -> Image.Image:
        """Upright and in mode RGB. Raises :class:`~tide.errors.TideError` for an unreadable one."""
        if isinstance(self.content, list):
            raise TideError(f"{self.name} is a clip of {len(self.content)} frames; use a pipeline that draws videos")
        return self.content if isinstance(self.content, Image.Image) else open_picture(self.content, self.name)

    def frames(self, n: int) -> list[Image.Image]:
        """The ``n`` in the middle of a clip. Raises :class:`~tide.errors.TideError` for a picture."""
        if isinstance(self.content, Image.Image):
            raise TideError(f"{self.name} is one picture, and this pipeline draws videos; give clips")
        if isinstance(self.content, list):
            return clip_of(self.content, self.name, n)
        return open_clip(self.content, self.name, n)

    def tensor(self, size: Size) -> Tensor:
        """The picture as a tensor, or of a size with frames the clip."""
        n = n_frames_of(size)
        return to_tensor(self.picture(), size) if n is None else to_clip(self.frames(n), size)

    def digest(self) -> str:
        """Of the file's bytes, else, after :data:`~tide.images.identity.PIXELS`, of the picture's size and pixels."""
        if isinstance(self.content, bytes):
            return digest(self.content)
        if isinstance(self.content, Path):
            return file_digest_of(self.content, self.name)
        frames = self.content if isinstance(self.content, list) else [self.content]
        return PIXELS + digest(b"".join(f"{each.width}x{each.height} ".encode() + each.tobytes() for each in frames))


def cell_of(value: Any, name: str, *, paths: bool = False) -> Cell:
    """``value``: a picture of Pillow; a file's bytes; ``{"bytes": ..., "path": ...}``, as ``datasets`` has them
    undecoded, where the path may be an address; an array or tensor (:func:`~tide.images.arrays.from_array`); and a
    path where ``paths`` allows it.

    Raises :class:`~tide.errors.TideError` for anything else.
    """
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and isinstance(path, str):
            value = _fetched(path, name) if "://" in path else Path(path)
    if paths and isinstance(value, str):
        value = Path(value)
    if isinstance(value, np.ndarray | Tensor):
        value = from_array(value, name) if value.ndim != 4 else list(value)
    if isinstance(value, list) and value and isinstance(value[0], Image.Image | np.ndarray | Tensor):
        frames = [each if isinstance(each, Image.Image) else from_array(each, name) for each in value]
        return Cell([to_rgb(each, name=name) for each in frames], name)
    if isinstance(value, Image.Image):
        return Cell(to_rgb(value, name=name), name)
    if not isinstance(value, bytes | Path):
        raise TideError(f"{name} holds no image; name the images' column with image_column")
    return Cell(value, name)


def _fetched(path: str, name: str) -> bytes:
    """The bytes of an image that a data set keeps as a file elsewhere."""
    import fsspec  # comes with datasets

    try:
        with fsspec.open(path, "rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
            return content
    except (OSError, ValueError) as error:
        raise TideError(f"{name} could not be fetched ({one_line(error)}); try again, or leave that row out") from None

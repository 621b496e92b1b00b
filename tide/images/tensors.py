"""Pictures as the tensors that a pipeline's VAE takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tide.errors import TideError
from tide.images.decode import to_rgb

#: A side in pixels, (height, width), or of clips (frames, height, width).
Size = int | tuple[int, ...]


def to_tensor(image: Image.Image, size: Size, name: str = "the picture") -> Tensor:
    """The image's centre in the aspect ratio of ``size``, resized to it: ``[3, H, W]`` float32 in [-1, 1].

    Transparent pixels become white and the EXIF orientation is applied; ``name`` is what messages call it
    (:func:`tide.images.to_rgb`).
    """
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    fitted = ImageOps.fit(to_rgb(image, name=name), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def to_clip(frames: Sequence[Image.Image], size: Size, name: str = "the clip") -> Tensor:
    """Every frame by :func:`to_tensor`: ``[3, F, H, W]`` float32 in [-1, 1]."""
    return torch.stack([to_tensor(frame, size, name) for frame in frames], dim=1)


def n_frames_of(size: Size) -> int | None:
    """The frames of a size of clips; None of pictures."""
    return size[0] if not isinstance(size, int) and len(size) == 3 else None


def check_size(size: Size) -> None:
    """Raises :class:`~tide.errors.TideError` for a size without pixels."""
    if min((size,) if isinstance(size, int) else size) < 1:
        raise TideError(
            f"size {size} has no pixels; give the side in pixels, (height, width) or (frames, height, width)"
        )

"""Pictures as the tensors that a pipeline's VAE takes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tide.errors import TideError
from tide.images.decode import to_rgb

#: A side in pixels, or (height, width).
Size = int | tuple[int, int]


def to_tensor(image: Image.Image, size: Size, name: str = "the picture") -> Tensor:
    """The image's centre in the aspect ratio of ``size``, resized to it: ``[3, H, W]`` float32 in [-1, 1].

    Transparent pixels become white and the EXIF orientation is applied; ``name`` is what messages call it
    (:func:`tide.images.to_rgb`).
    """
    height, width = (size, size) if isinstance(size, int) else size
    fitted = ImageOps.fit(to_rgb(image, name=name), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def check_size(size: Size) -> None:
    """Raises :class:`~tide.errors.TideError` for a size without pixels."""
    if min((size,) if isinstance(size, int) else size) < 1:
        raise TideError(f"size {size} has no pixels; give the side in pixels or (height, width)")

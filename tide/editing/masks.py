"""From a mask over pixels, in a tensor or in a picture, to a mask over image tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import image_grid, image_size
from tide.errors import TideError
from tide.images import open_picture


def token_mask(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """bool ``[..., H, W]`` over pixels to bool ``[..., tokens]`` over a grid ``(h, w)`` of tokens, row by row: a
    token belongs to the mask if more than half of its area does."""
    height, width = pixels.shape[-2:]
    h, w = grid
    if height % h or width % w:
        raise TideError(f"a mask of {height} x {width} pixels does not divide into {h} x {w} tokens; resize it")
    flat = pixels.reshape(-1, 1, height, width).float()
    share = F.avg_pool2d(flat, (height // h, width // w))
    return (share > 0.5).reshape(*pixels.shape[:-2], h * w)


def read_mask(path: str | Path, adapter: Adapter, size: tuple[int, int] | None = None) -> Tensor:
    """Where the picture ``path`` is bright, as the ``tokens`` of :func:`tide.editing.edit`.

    Args:
        path: a picture of the image's size; what is transparent is dark.
        size: height and width of the image in pixels; default the pipeline's own.
        adapter: of the pipeline that draws.

    Returns:
        bool ``[tokens]``: true where more than half of the token's pixels are brighter than mid-grey (127 of 255).

    Raises:
        TideError: the picture cannot be read, is of another size, or no token is more than half bright.
    """
    picture = open_picture(path, background="black").convert("L")
    size = image_size(adapter, size)
    if (picture.height, picture.width) != size:
        raise TideError(
            f"{path} is {picture.height} x {picture.width} pixels and the image {size[0]} x {size[1]}; make the "
            "mask of the image's size"
        )
    tokens = token_mask(torch.from_numpy(np.asarray(picture) > 127), image_grid(adapter, size))
    if not tokens.any():
        raise TideError(f"{path} covers no token by more than half; make the mask larger or brighter")
    return tokens


def image_mask(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Values ``[..., tokens]`` to ``[..., H, W]``, bilinear, for drawing a token map over its image.

    ``grid`` has the rows and columns of the tokens, ``size`` height and width in pixels.
    """
    flat = tokens.reshape(-1, 1, *grid).float()
    enlarged = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return enlarged.reshape(*tokens.shape[:-1], *size).to(torch.float32)

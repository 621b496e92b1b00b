"""From a mask over pixels to a mask over image tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.errors import TideError


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


def image_mask(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Values ``[..., tokens]`` to ``[..., H, W]``, bilinear, for drawing a token map over its image."""
    flat = tokens.reshape(-1, 1, *grid).float()
    enlarged = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return enlarged.reshape(*tokens.shape[:-1], *size).to(torch.float32)

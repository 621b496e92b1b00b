"""From a mask over pixels, in a tensor or in a picture, to a mask over image tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tide.adapters import Adapter
from tide.adapters.sizes import image_grid, image_size
from tide.errors import TideError
from tide.images import open_picture
from tide.images.clips import CLIP_SUFFIXES, is_animated, open_clip


def token_mask(pixels: Tensor, grid: tuple[int, ...], *, first_alone: bool = True) -> Tensor:
    """bool ``[..., H, W]`` over pixels to bool ``[..., tokens]`` over a grid ``(h, w)`` of tokens, row by row: a
    token belongs to the mask if more than half of its area does. Of a clip ``[..., frames, H, W]`` over a grid
    ``(f, h, w)``, frame by frame: of the frames that a token stands for, more than half of its area (``first_alone`` is
    that of :func:`frame_shares`)."""
    height, width = pixels.shape[-2:]
    *f, h, w = grid
    if height % h or width % w:
        raise TideError(f"a mask of {height} x {width} pixels does not divide into {h} x {w} tokens; resize it")
    flat = pixels.reshape(-1, 1, height, width).float()
    share = F.avg_pool2d(flat, (height // h, width // w)).reshape(*pixels.shape[:-2], h * w)
    if f:
        share = frame_shares(pixels.shape[-3], f[0], first_alone=first_alone).to(share) @ share
    return (share > 0.5).flatten(-2) if f else share > 0.5


def frame_shares(frames: int, tokens: int, *, first_alone: bool = True) -> Tensor:
    """``[tokens, frames]``: what share each frame of a clip has of each frame of tokens. The first frame of tokens is
    the first of the clip, and the others share the rest evenly, as most VAEs of videos compress them, where that comes
    out even and ``first_alone`` allows it; else all do.

    Raises :class:`~tide.errors.TideError` for frames that cannot be shared so.
    """
    alone = first_alone and frames != tokens and tokens > 1 and (frames - 1) % (tokens - 1) == 0
    rest, shared = (frames - 1, tokens - 1) if alone else (frames, tokens)
    if rest % shared:
        raise TideError(f"a clip of {frames} frames does not divide into {tokens} frames of tokens; give another")
    each = rest // shared
    shares = torch.kron(torch.eye(shared), torch.full((1, each), 1 / each))
    return torch.block_diag(torch.ones(1, 1), shares) if alone else shares


def token_frames(frames: int, tokens: int) -> list[int]:
    """For each frame of a clip the frame of tokens that stands for it (:func:`frame_shares`)."""
    return frame_shares(frames, tokens).argmax(0).tolist()


def read_mask(path: str | Path, adapter: Adapter, size: tuple[int, ...] | None = None) -> Tensor:
    """Where the picture ``path`` is bright, as the ``tokens`` of :func:`tide.editing.edit`.

    Args:
        path: a picture of the image's size; what is transparent is dark. For a clip a picture for all of its frames, or
            a clip of as many.
        size: height and width of the image in pixels; default the pipeline's own.
        adapter: of the pipeline that draws.

    Returns:
        bool ``[tokens]``: true where more than half of the token's pixels are brighter than mid-grey (127 of 255).

    Raises:
        TideError: the picture cannot be read, is of another size, or no token is more than half bright.
    """
    size = image_size(adapter, size)
    pictures = _pictures(Path(path), size)
    height, width = size[-2:]
    if (pictures[0].height, pictures[0].width) != (height, width):
        raise TideError(
            f"{path} is {pictures[0].height} x {pictures[0].width} pixels and the image {height} x {width}; make the "
            "mask of the image's size"
        )
    bright = torch.from_numpy(np.stack([np.asarray(each.convert("L")) > 127 for each in pictures]))
    mask = bright.expand(*size[:-2], -1, -1) if len(size) == 3 else bright[0]
    tokens = token_mask(mask, image_grid(adapter, size), first_alone=adapter.clip_frames(1) == 1)
    if not tokens.any():
        raise TideError(f"{path} covers no token by more than half; make the mask larger or brighter")
    return tokens


def _pictures(path: Path, size: tuple[int, ...]) -> list[Image.Image]:
    """The picture, or for a clip the frames of one that moves."""
    suffix = path.suffix.lower()
    if len(size) == 3 and suffix in CLIP_SUFFIXES:
        still = suffix in (".gif", ".webp") and not is_animated(path)
        return open_clip(path, str(path), 1 if still else size[0], background="black")
    return [open_picture(path, background="black")]


def image_mask(tokens: Tensor, grid: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Values ``[..., tokens]`` to ``[..., H, W]``, bilinear, for drawing a token map over its image.

    ``grid`` has the rows and columns of the tokens, ``size`` height and width in pixels.
    """
    flat = tokens.reshape(-1, 1, *grid).float()
    enlarged = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return enlarged.reshape(*tokens.shape[:-1], *size).to(torch.float32)

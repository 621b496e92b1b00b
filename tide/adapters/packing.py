"""Latents packed into tokens, as a rule two by two: a token is a square of 2 x 2 latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Side of the square.
PACK = 2


def pack(latents: Tensor, side: int = PACK) -> Tensor:
    """Latents ``[B, c, h, w]`` to tokens ``[B, h/2 * w/2, 4c]``, row-major, each c times its 2 x 2 square.

    Args:
        latents: h and w multiples of the side.
        side: of the square, if not 2.
    """
    return nn.functional.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, grid: tuple[int, int], side: int = PACK) -> Tensor:
    """The inverse of :func:`pack` for ``grid = (h/2, w/2)``.

    Args:
        tokens: ``[B, h/2 * w/2, 4c]``.
        grid: rows and columns of the tokens.
        side: of the square, if not 2.
    """
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, grid), side)


def positions(grid: tuple[int, int], columns: int = 3) -> Tensor:
    """``[tokens, columns]``: row and column of each token in the second and third, 0 in the others."""
    place = torch.cartesian_prod(*(torch.arange(n) for n in grid))
    return nn.functional.pad(place, (1, columns - 3))

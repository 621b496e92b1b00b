"""Peaks of latents a piece at a time, so that those of all latents in all images are never in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError

#: Each latent's highest value in each image: of all latents, ``[images, n_latents]``, or in pieces: the numbers of some
#: latents and their columns ``[images, some]``. NumPy arrays will do.
Peaks = Tensor | Iterable[tuple[Sequence[int] | Tensor, Tensor]]

#: Columns of a piece of a whole tensor.
PIECE = 4096


def pieces_of(peaks: Peaks, n_images: int | None = None) -> Iterator[tuple[list[int], Tensor]]:
    """The numbers and columns, float32, of all pieces.

    Raises :class:`~tide.errors.TideError` for peaks of another number of images (or, where it is None, of various), for
    values that are not finite and for a latent that comes twice.
    """
    seen: set[int] = set()
    for latents, columns in _pieces(peaks):
        numbers = torch.as_tensor(latents).tolist()
        rows = len(columns) if n_images is None else n_images
        if columns.ndim != 2 or columns.shape != (rows, len(numbers)):
            raise TideError(
                f"peaks of {len(numbers)} latents are {list(columns.shape)}; give [images, latents] of {rows} images"
            )
        if not columns.isfinite().all():
            raise TideError("peaks hold NaN or infinity; check the latents that they are of")
        if len(set(numbers)) < len(numbers) or seen & set(numbers):
            raise TideError("peaks of a latent are given twice; give each latent once")
        seen.update(numbers)
        n_images = rows
        yield numbers, columns


def _pieces(peaks: Any) -> Iterator[tuple[Any, Tensor]]:
    if not hasattr(peaks, "shape"):
        for latents, columns in peaks:
            yield latents, torch.as_tensor(columns).float()
        return
    whole = torch.as_tensor(peaks)
    if whole.ndim != 2:
        raise TideError(f"peaks are {list(whole.shape)}; give [images, latents]")
    for start in range(0, whole.shape[1], PIECE):
        columns = whole[:, start : start + PIECE].float()
        yield range(start, start + columns.shape[1]), columns

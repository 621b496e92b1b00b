"""What is gathered of every latent while images are read, in one pass and a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from math import prod

import torch
from torch import Tensor

from tide.errors import TideError
from tide.interpretation.atlas import Atlas
from tide.interpretation.frames import MAP_FRAMES, FrameSums
from tide.interpretation.reading import PIECE
from tide.sae.model import TIDE
from tide.sae.position import Position, at_step

#: Rows and columns of a map at most; larger token grids are pooled by area. Frames: tide.interpretation.frames.
MAP_SIDE = 16


def build_atlas(
    model: TIDE,
    timesteps: Tensor,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    grid: tuple[int, ...],
    *,
    top_images: int = 6,
    on_latents: Callable[[Tensor], None] | None = None,
    on_peaks: Callable[[Tensor], None] | None = None,
) -> Atlas:
    """Reads all images once and keeps only what :class:`Atlas` holds of each latent.

    ``batches`` are ``(x [timesteps, images, tokens, d_model], conditioning [timesteps, images, d_embedding] or None)``
    in the order of the images, which are numbered from 0 (``[images, d_embedding]`` if all timesteps share it); their
    tokens form ``grid`` (rows, columns), row by row; those of clips (frames, rows, columns), frame by frame. At most
    :data:`~tide.interpretation.reading.PIECE` dense latents are held at a time, and as many values of maps.

    ``on_latents`` gets the latents averaged over the timesteps, ``[images, tokens, n_latents]``, a piece at a time and
    in order: whole images, or some of the tokens of one image. ``on_peaks`` gets the highest of them in each image,
    ``[images, n_latents]`` on the CPU, in order.

    Args:
        model: an SAE, on the device where it is to compute.
        timesteps: ``[T]``.
        batches: activations, in the order of the images.
        grid: rows and columns of an image's tokens; of a clip its frames of tokens before them.
        top_images: images kept of each latent.
        on_latents, on_peaks: called with what is described above.

    Raises:
        TideError: if there are no images or no timesteps, and for activations of another shape or that are not finite.
    """
    if len(timesteps) == 0 or top_images < 1:
        raise TideError(
            f"{len(timesteps)} timesteps and {top_images} top images are too few for an atlas; give at least 1 of both"
        )
    gathered = Gathered(model, timesteps, grid, top_images, on_latents, on_peaks)
    for x, conditioning in batches:
        gathered.add(x, conditioning)
    if gathered.n_images == 0:
        raise TideError("there are no images to make an atlas of; give at least one")
    return gathered.atlas()


class Gathered:
    """Sums over the images read so far, and each latent's strongest of them. All on the CPU."""

    def __init__(
        self,
        model: TIDE,
        timesteps: Tensor,
        grid: tuple[int, ...],
        n_top: int,
        on_latents: Callable[[Tensor], None] | None,
        on_peaks: Callable[[Tensor], None] | None,
    ) -> None:
        self.model, self.timesteps = model, timesteps
        self.on_latents, self.on_peaks = on_latents, on_peaks
        self.n_tokens = prod(grid)
        self.map_size, self.pooling = _area_pooling(grid)
        n, cells = model.n_latents, prod(self.map_size)
        self.frames = FrameSums(grid[0], grid[1] * grid[2], n) if len(grid) == 3 else None
        self.n_images = 0
        self.fired = torch.zeros(len(timesteps), n, dtype=torch.int64)
        self.total = torch.zeros(len(timesteps), n, dtype=torch.float64)
        self.top = Ranked(n, n_top, cells)

    def add(self, x: Tensor, conditioning: Tensor | None) -> None:
        shape, wanted = list(x.shape), (len(self.timesteps), self.n_tokens)
        if len(shape) != 4 or (shape[0], shape[2]) != wanted:
            raise TideError(f"activations are {shape}; an atlas needs [{wanted[0]}, images, {wanted[1]}, d_model]")
        for t, each in zip(self.timesteps.tolist(), x, strict=True):
            if not each.isfinite().all():
                raise TideError(
                    f"activations hold NaN or inf at timestep {t:g}; use a wider dtype (bf16 instead of fp16)"
                )
        images_at_once = max(1, PIECE // (self.n_tokens * self.model.n_latents))
        for first in range(0, shape[1], images_at_once):
            part = slice(first, first + images_at_once)
            self._add_images(x[:, part], None if conditioning is None else conditioning[..., part, :])

    def _add_images(self, x: Tensor, conditioning: Tensor | None) -> None:
        """Images that together form one piece, or one image of several pieces."""
        n_images, n_latents = x.shape[1], self.model.n_latents
        peaks = torch.zeros(n_images, n_latents, device=x.device)
        maps = torch.zeros(n_images, self.top.maps.shape[2], n_latents, device=x.device)
        first = 0
        for piece in x.split(max(1, PIECE // (n_images * n_latents)), dim=2):
            latents = self._averaged(piece, conditioning, first)
            if self.on_latents is not None:
                self.on_latents(latents)
            peaks = torch.maximum(peaks, latents.amax(1))
            tokens = slice(first, first + latents.shape[1])
            if self.pooling is None:
                maps[:, tokens] = latents
            else:
                maps += self.pooling[:, tokens].to(latents) @ latents
            first = tokens.stop
        peaks = peaks.cpu()
        if self.on_peaks is not None:
            self.on_peaks(peaks)
        self.rank(peaks, maps.cpu())
        self.n_images += n_images

    def see(self, step: int, latents: Tensor, first: int) -> None:
        """Called with the latents ``[images, tokens, n_latents]`` of every piece at every timestep (its number); the
        first of the tokens is number ``first``."""

    def _averaged(self, x: Tensor, conditioning: Tensor | None, first: int) -> Tensor:
        """Latents ``[images, tokens, n_latents]`` averaged over the timesteps, each of which is counted."""
        total = torch.zeros(*x.shape[1:3], self.model.n_latents, device=x.device)
        for i, t in enumerate(self.timesteps.tolist()):
            z = self.model.dense(x[i], Position(t, at_step(conditioning, i)))
            self.fired[i] += (z > 0).sum((0, 1)).cpu()
            self.total[i] += z.sum((0, 1)).cpu()
            if self.frames is not None:
                self.frames.add(z, first)
            self.see(i, z, first)
            total += z
        return total / len(self.timesteps)

    def rank(self, peaks: Tensor, maps: Tensor) -> None:
        """Takes in new images: ``peaks [images, n_latents]`` and ``maps [images, cells, n_latents]``."""
        self.top.merge(peaks.T, peaks.T, self.n_images, maps)

    def atlas(self) -> Atlas:
        n_rows = self.n_images * self.n_tokens
        frames = None if self.frames is None else self.frames.profiles(self.n_images * len(self.timesteps))
        return Atlas(
            self.timesteps.float().cpu(),
            (self.fired.double() / n_rows).float(),
            (self.total / n_rows).float(),
            self.top.images,
            self.top.values,
            as_bytes(self.top.maps, self.map_size),
            self.n_images,
            self.n_tokens,
            frame_frequency=None if frames is None else frames.frequency,
            frame_mean=None if frames is None else frames.mean,
        )


class Ranked:
    """Of each latent the images that rank highest, with its value and its map there.

    Attributes:
        keys: what images are ranked by, ``[n_latents, m]``, highest first; 0 without an image.
        images: ``[n_latents, m]`` int64; -1 without one.
        values: ``[n_latents, m]``.
        maps: ``[n_latents, m, cells]``.
    """

    def __init__(self, n_latents: int, m: int, cells: int) -> None:
        self.keys = torch.zeros(n_latents, m)
        self.images = torch.full((n_latents, m), -1)
        self.values = torch.zeros(n_latents, m)
        self.maps = torch.zeros(n_latents, m, cells)

    def merge(self, keys: Tensor, values: Tensor, first: int, maps: Tensor) -> None:
        """Takes in new images from number ``first`` on: ``keys`` and ``values [n_latents, images]``, ``maps [images,
        cells, n_latents]``. An image whose key is 0 is never taken."""
        m = self.keys.shape[1]
        numbers = torch.arange(first, first + keys.shape[1]).expand(len(keys), -1)
        # Stable: of equal keys the earlier image stays first, and an empty place (0) before an image without any.
        ranked, order = torch.cat([self.keys, keys], dim=1).sort(dim=1, descending=True, stable=True)
        order = order[:, :m]
        self.keys = ranked[:, :m].contiguous()
        self.images = torch.cat([self.images, numbers], dim=1).gather(1, order)
        self.values = torch.cat([self.values, values], dim=1).gather(1, order)
        changed = (order >= m).any(1).nonzero().flatten()  # few, after the first images
        order = order[changed]
        kept = order.clamp(max=m - 1)[..., None].expand(-1, -1, maps.shape[1])
        own = self.maps[changed].gather(1, kept)
        row, place = (order >= m).nonzero(as_tuple=True)
        own[row, place] = maps[order[row, place] - m, :, changed[row]]
        self.maps[changed] = own


def as_bytes(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """``maps [n_latents, m, cells]`` as uint8 ``[n_latents, m, *size]``; 255 is the strongest place of all the latent's
    maps."""
    strongest = maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return (maps / strongest * 255).round().byte().unflatten(2, size)


def map_size(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns of the map of a grid of tokens; of a clip frames before them."""
    factor = max(*grid[-2:], MAP_SIDE) / MAP_SIDE
    return (*(min(each, MAP_FRAMES) for each in grid[:-2]), *(max(1, round(side / factor)) for side in grid[-2:]))


def _area_pooling(grid: tuple[int, ...]) -> tuple[tuple[int, ...], Tensor | None]:
    """The size of a map and the matrix ``[cells, tokens]`` that makes one; None if every token is a cell."""
    size = map_size(grid)
    if size == tuple(grid):
        return size, None
    return size, reduce(torch.kron, map(_overlaps, size, grid)).float()


def _overlaps(cells: int, tokens: int) -> Tensor:
    """``[cells, tokens]`` float64: the share of each of ``cells`` equal parts of a line that each token covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64)[:, None] * tokens / cells
    start = torch.arange(tokens, dtype=torch.float64)
    shared = torch.minimum(edges[1:], start + 1) - torch.maximum(edges[:-1], start)
    return shared.clamp(min=0) * cells / tokens

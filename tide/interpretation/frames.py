"""Latents along the frames of clips: how much each fires in every frame, and how far its place moves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Frames of a map at most; those of longer clips are pooled.
MAP_FRAMES = 8


@dataclass(frozen=True)
class FrameProfiles:
    """``mean`` and ``frequency [frames, n_latents]``: of each frame of tokens the mean value of every latent over the
    tokens of all clips and over the timesteps, silent tokens included, and the share of the tokens on which it is
    positive."""

    mean: Tensor
    frequency: Tensor

    @property
    def peak(self) -> Tensor:
        """The frame in which each latent is strongest, int64 ``[n_latents]``; the first of equal ones."""
        return self.mean.argmax(0)


class FrameSums:
    """Sums of latents over the tokens of each of ``frames``, whose tokens ``[frames * per_frame]`` come frame by
    frame."""

    def __init__(self, frames: int, per_frame: int, n_latents: int) -> None:
        self.per_frame = per_frame
        self.fired = torch.zeros(frames, n_latents, dtype=torch.float64)
        self.total = torch.zeros(frames, n_latents, dtype=torch.float64)

    def add(self, latents: Tensor, first: int) -> None:
        """``latents [clips, tokens, n_latents]``, the first of whose tokens is number ``first``."""
        frame, skipped = divmod(first, self.per_frame)
        ends = list(range(self.per_frame - skipped, latents.shape[1], self.per_frame))
        parts = latents.tensor_split(ends, dim=1)
        fired = torch.stack([(part > 0).sum((0, 1)) for part in parts]).cpu()
        total = torch.stack([part.sum((0, 1)) for part in parts]).cpu()
        self.fired[frame : frame + len(parts)] += fired
        self.total[frame : frame + len(parts)] += total

    def profiles(self, n: int) -> FrameProfiles:
        """Of ``n`` clips, each counted once for every timestep."""
        rows = max(1, n) * self.per_frame
        return FrameProfiles((self.total / rows).float(), (self.fired / rows).float())


def motion(maps: Tensor) -> Tensor:
    """How far each latent's place moves, ``[n_latents]``: of each of its clips a straight line is laid through the
    centroids of its map in all frames, each weighted by the map's sum there; the length of that line over the time in
    which the latent fires, as a share of the frame's longer side, averaged over the clips. What flickers to and fro has
    a short line. NaN where the latent fires in fewer than two frames of every clip.

    ``maps [n_latents, clips, frames, rows, columns]``, as of :class:`~tide.interpretation.atlas.Atlas`.
    """
    return torch.cat([_moved(part.double()) for part in maps.split(1024)])


def _moved(heat: Tensor) -> Tensor:
    frames, rows, columns = heat.shape[-3:]
    time, mass = torch.arange(frames).double(), heat.sum((-2, -1))
    share = mass / mass.sum(-1, keepdim=True)  # NaN for a clip without any
    down, right = heat.sum(-1) @ torch.arange(rows).double(), heat.sum(-2) @ torch.arange(columns).double()
    centroids = torch.stack([down, right]) / torch.where(mass > 0, mass, 1.0)
    time = time - (share * time).sum(-1, keepdim=True)
    spread = (share * time.square()).sum(-1)
    # As long as all frames where it fires in all alike; no line is drawn on to frames in which it is silent.
    lasts = (12 * (frames - 1) / (frames + 1) * spread).sqrt()
    length = (share * time * centroids).sum(-1).norm(dim=0) / spread * lasts / max(rows, columns)
    return torch.where(spread > 1e-9, length, torch.nan).nanmean(-1).float()

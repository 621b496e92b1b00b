"""Edits of raw activations by those of recorded tokens that resemble each token most, instead of by a mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tide.editing.edits import Place
from tide.editing.steer import RawEdit
from tide.errors import TideError

#: Similarities held at once (64 MB in float32): edited tokens times recorded ones.
PIECE = 2**24


@dataclass(frozen=True, eq=False)
class SteerNearest(RawEdit):
    """Adds to each token what its nearest recorded tokens say::

        x' = x + factor * mean of values[t, j] over the k keys[t, j] nearest to x by cosine

    Attributes:
        timesteps: the scheduler's, ``[T]``; the one nearest to the call's is used, of two equally near ones the first.
        keys: recorded activations ``[T, n, d_model]``, any float dtype.
        values: ``[T, n, d_model]``: what to add, in units of the activations, such as the difference that a word made.
        k: neighbours, at most n.
        factor: 0 is no edit.

    Raises:
        TideError: the shapes do not go together, k is out of range, or the factor is not finite.
    """

    timesteps: Tensor
    keys: Tensor
    values: Tensor
    k: int = 8
    factor: float = 1.0

    def __post_init__(self) -> None:
        shape = list(self.keys.shape)
        if len(shape) != 3 or not all(shape) or list(self.values.shape) != shape or shape[0] != len(self.timesteps):
            raise TideError(
                f"keys {shape} and values {list(self.values.shape)} must both be [timesteps, n, d_model], with "
                f"timesteps [timesteps] and not {list(self.timesteps.shape)}"
            )
        if not 1 <= self.k <= shape[1]:
            raise TideError(f"k = {self.k} neighbours of {shape[1]} recorded tokens; give 1 to {shape[1]}")
        if not math.isfinite(self.factor):
            raise TideError(f"factor = {self.factor} must be finite")

    @property
    def width(self) -> int:
        return self.keys.shape[-1]

    def nearest(self, x: Tensor, place: Place) -> Tensor:
        """The mean of the values of each token's neighbours, float32 ``[N, d_model]``, for ``x [N, d_model]``."""
        step = int((self.timesteps - place.timestep).abs().argmin())
        keys = F.normalize(self.keys[step].to(x.device, torch.float32), dim=1)
        values = self.values[step].to(x.device, torch.float32)
        found = [
            values[(F.normalize(rows.float(), dim=1) @ keys.T).topk(self.k, dim=1).indices].mean(1)
            # The values of the neighbours take k rows of d_model for each token, the similarities one of n.
            for rows in x.split(max(1, PIECE // max(len(keys), self.k * self.width)))
        ]
        return torch.cat(found)

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        return x + self.factor * self.nearest(x, place).to(x) if len(x) else x


@dataclass(frozen=True, eq=False)
class SteerTowardsNearest(SteerNearest):
    """Moves each token towards its nearest recorded tokens: ``x + factor * (mean of values - x)``, ``values`` being
    activations (usually the keys themselves)."""

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        return torch.lerp(x, self.nearest(x, place).to(x), self.factor) if len(x) else x

"""Edits along a contrast: latents with a concept in the prompt against latents without it.

:func:`tide.editing.record.record_contrast` makes the two on reference images. :class:`Contrast` and :class:`Keep` act
on latents; :class:`SteerBounded` does nearly the same to raw activations, neuron by neuron: a neuron, which may be
negative, stops half of the difference beyond its level, whichever way it moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.editing.edits import Edit, Place, Target, check_target, check_top_k, strongest
from tide.editing.steer import Steer
from tide.errors import TideError
from tide.sae.model import TIDE

#: How far above the level it has with the concept a latent may be raised.
CEILING = 1.5


def _bounded(z: Tensor, difference: Tensor, factor: float, upper: Tensor, lower: Tensor) -> Tensor:
    """``z + factor * difference``, except that rising values stop at ``upper`` and falling ones at ``lower``; a value
    already beyond its bound stays."""
    moved = z + factor * difference
    up = torch.minimum(moved, torch.maximum(z, upper))
    down = torch.maximum(moved, torch.minimum(z, lower))
    return torch.where(difference > 0, up, torch.where(difference < 0, down, z))


def _check_factor(factor: float, ceiling: float) -> None:
    if not 0 <= factor < math.inf:
        raise TideError(
            f"factor = {factor} must be finite and not negative; exchange the two targets to go the other way"
        )
    if not ceiling >= 1:
        raise TideError(f"ceiling = {ceiling} must be at least 1; 1 stops at the target's own level")


@dataclass(frozen=True)
class Contrast(Edit):
    """Moves latents along ``d = present - absent``, each no further than it has to go::

        d > 0:  z' = min(z + factor * d, max(z, ceiling * present))
        d < 0:  z' = max(z + factor * d, min(z, present))
        d = 0:  z' = z

    ``present`` and ``absent`` are the latents of reference images under a prompt that names the target and under one
    that names the source instead. A latent that already has the target's level is left alone, so the edit stops pushing
    once the image has followed it; adding d to raw activations does not stop.
    """

    present: Target
    absent: Target
    factor: float = 1.0
    ceiling: float = CEILING

    def __post_init__(self) -> None:
        _check_factor(self.factor, self.ceiling)

    def latents(self, z: Tensor, place: Place) -> Tensor:
        level = self.present.at(place).to(z)
        difference = (level - self.absent.at(place).to(z)).expand_as(z)
        return _bounded(z, difference, self.factor, self.ceiling * level, level)

    def check(self, n_latents: int) -> None:
        check_target(self.present, n_latents)
        check_target(self.absent, n_latents)


@dataclass(frozen=True)
class Keep(Edit):
    """Keeps each token's ``top_k`` largest latents and sets the others to 0, as TopK does: after an edit that raised
    many latents, a token again consists of as few as in training."""

    top_k: int

    def __post_init__(self) -> None:
        check_top_k(self.top_k)

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return z.masked_fill(~strongest(z, self.top_k), 0.0)


def sparse_again(change: Edit, model: TIDE) -> Edit:
    """``change``, after which the tokens of a TopK ``model`` keep their k largest latents. With other activations k is
    a mean, tokens have different numbers of active latents, and all are kept."""
    return change + Keep(model.config.k) if model.config.activation == "topk" else change


@dataclass(frozen=True)
class SteerBounded(Steer):
    """:class:`Contrast` for raw activations: ``direction = present - absent`` is added neuron by neuron, but no neuron
    is pushed beyond ``present + (ceiling - 1) * direction`` if it rises with the target, nor below it if it falls.

    ``present`` is shaped as ``direction``.
    """

    present: Tensor | None = None
    ceiling: float = CEILING

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_factor(self.factor, self.ceiling)
        if self.present is None or self.present.shape != self.direction.shape:
            found = None if self.present is None else list(self.present.shape)
            raise TideError(f"present is {found} and direction {list(self.direction.shape)}; give both the same shape")

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        assert self.present is not None
        difference = self.at(place).to(x).expand_as(x)
        level = Steer(self.timesteps, self.present).at(place).to(x) + (self.ceiling - 1) * difference
        return _bounded(x, difference, self.factor, level, level)

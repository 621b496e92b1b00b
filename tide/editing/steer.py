"""Directions added to raw activations, without an SAE: the baselines that edits of latents are compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from tide.editing.edits import Place, check_map
from tide.errors import TideError


class RawEdit(ABC):
    """A change of raw activations, without an SAE."""

    @property
    @abstractmethod
    def width(self) -> int:
        """d_model of what it adds."""

    @abstractmethod
    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved; ``x`` itself must not be written to."""

    def check(self, d_model: int) -> None:
        """Raises :class:`~tide.errors.TideError` if the direction is not one of a transformer of this width."""
        if self.width != d_model:
            raise TideError(
                f"the direction has width {self.width} and the transformer {d_model}; "
                "take it from the block that is steered"
            )


@dataclass(frozen=True)
class Steer(RawEdit):
    """Adds ``factor * direction`` to raw activations, without an SAE: the baseline of section 6.

    ``direction`` is ``[timesteps, d_model]`` or, as a map over the image, ``[timesteps, tokens, d_model]``, or one
    such map per image of the batch, ``[timesteps, images, tokens, d_model]``, in activation units; a map of one token
    holds for all. The recorded timestep nearest to the call's is used.
    """

    timesteps: Tensor
    direction: Tensor
    factor: float = 1.0

    def __post_init__(self) -> None:
        shape = list(self.direction.shape)
        if len(shape) not in (2, 3, 4) or shape[:1] != list(self.timesteps.shape) or not shape[0]:
            raise TideError(
                f"direction {shape} must be [timesteps, d_model], [timesteps, tokens, d_model] or "
                f"[timesteps, images, tokens, d_model], with timesteps [timesteps] and not {list(self.timesteps.shape)}"
            )

    @property
    def width(self) -> int:
        return self.direction.shape[-1]

    def at(self, place: Place) -> Tensor:
        """The direction of each row ``[N, d_model]`` (or ``[d_model]`` if it has no place)."""
        nearest = self.direction[int((self.timesteps - place.timestep).abs().argmin())]
        if nearest.ndim == 1:
            return nearest
        image, token = place.image.to(nearest.device), place.token.to(nearest.device)
        if nearest.shape[-2] == 1:
            token = torch.zeros_like(token)
        else:
            check_map(nearest.shape[-2], place, "the direction")
        if nearest.ndim == 2:
            return nearest[token]
        if len(image) and int(image.max()) >= len(nearest):
            raise TideError(f"the batch has more images than the direction's {len(nearest)}; give a map an image")
        return nearest[image, token]

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        return x + self.factor * self.at(place).to(x)


@dataclass(frozen=True)
class SteerTowards(Steer):
    """Moves raw activations towards recorded ones: ``x + factor * (direction - x)``, ``direction`` being the target's
    activations at the same step and place."""

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        return torch.lerp(x, self.at(place).to(x), self.factor)


@dataclass(frozen=True)
class SteerPerImage(RawEdit):
    """Edit i for image i of the batch, as :class:`~tide.editing.PerImage` is for edits of latents.

    Raises:
        TideError: there is none, or they are of several widths; once it edits, the batch has more images than edits.
    """

    edits: tuple[RawEdit, ...]

    def __post_init__(self) -> None:
        if not self.edits:
            raise TideError("there is no edit; give one an image")
        if len(widths := sorted({each.width for each in self.edits})) > 1:
            raise TideError(f"the edits are of widths {widths[0]} and {widths[1]}; take all from one block")

    @property
    def width(self) -> int:
        return self.edits[0].width

    def activations(self, x: Tensor, place: Place) -> Tensor:
        """``x [N, d_model]``, the activations at ``place``, moved."""
        out = x.clone()
        for image in place.image.unique().tolist():
            if image >= len(self.edits):
                raise TideError(f"the batch has more images than the {len(self.edits)} edits given; give one an image")
            rows = (place.image == image).nonzero().flatten()
            out[rows] = self.edits[image].activations(x[rows], place.take(rows)).to(x)
        return out

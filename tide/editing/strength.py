"""An edit part of the way, or beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tide.editing.edits import Edit, Place


@dataclass(frozen=True)
class Strength(Edit):
    """``z' = z + strength * (edit(z) - z)``: at strength 0 the latents stay as they are, at 1 it is ``edit`` itself.

    Edits towards a target have a strength of their own: :class:`~tide.editing.Replace`,
    :class:`~tide.editing.ScaleTarget`, :class:`~tide.editing.Contrast`.
    """

    edit: Edit
    strength: float

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return torch.lerp(z, self.edit.latents(z, place), self.strength)

    def check(self, n_latents: int) -> None:
        self.edit.check(n_latents)

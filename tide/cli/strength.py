"""An edit part of the way, or beyond it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tide.editing import Edit
from tide.editing.edits import Place


@dataclass(frozen=True)
class Strength(Edit):
    """``z <- z + strength * (edit(z) - z)``: 0 leaves the latents as they are, 1 is the edit itself."""

    edit: Edit
    strength: float

    def latents(self, z: Tensor, place: Place) -> Tensor:
        return torch.lerp(z, self.edit.latents(z, place), self.strength)

    def check(self, n_latents: int) -> None:
        self.edit.check(n_latents)

"""A threshold stored with the model: one number that pre-activations have to exceed at inference."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.sae.activation.base import Activation


class StoredThreshold(Activation):
    """An activation with ``threshold``, one number for all latents, 0 until it is known.

    ``stored=False`` leaves it out, of the checkpoint as well: the activation then has no threshold but 0.
    """

    def __init__(self, n_latents: int, *, stored: bool = True) -> None:
        super().__init__(n_latents)
        self.register_buffer("threshold", torch.zeros(()) if stored else None)

    threshold: Tensor | None

    def thresholds(self, embedding: Tensor | None = None) -> Tensor | None:
        return self.threshold

    @property
    def matched(self) -> bool:
        return self.threshold is not None

    @torch.no_grad()
    def heights(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        return pre

    @torch.no_grad()
    def set_cut(self, cut: float) -> None:
        assert self.threshold is not None
        self.threshold.fill_(cut)

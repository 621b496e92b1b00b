"""Gated: one affine map decides which latents fire, another how strongly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tide.sae.activation.base import Firing
from tide.sae.activation.stored import StoredThreshold


class Gated(StoredThreshold):
    """``z = H(pre) * ReLU(exp(r_mag) * (pre - b_enc) + b_mag)`` (Rajamanoharan et al., arXiv 2404.16014, with its
    sharing of weights: the gate is the encoder, the magnitude the same directions rescaled).

    H passes no gradient to the gate. It gets one from the penalty, an L1 norm of ``ReLU(pre)``, and from
    reconstructing x from ``ReLU(pre)`` as well, by the decoder held fixed. With a stored threshold the gate is
    ``H(pre - threshold)`` at inference, so that L0 can be lowered to k after training.
    """

    def __init__(self, n_latents: int, *, stored: bool = True) -> None:
        super().__init__(n_latents, stored=stored)
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))

    def forward(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        gate = 0.0 if self.threshold is None else self.threshold
        return torch.where(pre <= gate, 0, self._magnitude(pre, b_enc))

    def training_latents(
        self,
        pre: Tensor,
        b_enc: Tensor | None,
        k: int,
        threshold: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        return torch.where(pre <= 0, 0, self._magnitude(pre, b_enc))

    def _magnitude(self, pre: Tensor, b_enc: Tensor | None) -> Tensor:
        directions = pre if b_enc is None else pre - b_enc.to(pre.dtype)
        return (self.r_mag.exp().to(pre.dtype) * directions + self.b_mag.to(pre.dtype)).relu()

    @torch.no_grad()
    def heights(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        return torch.where(self._magnitude(pre, b_enc) > 0, pre, 0)

    def penalty(self, firing: Firing) -> Tensor:
        # Its paper keeps decoder rows at norm 1; here the penalty is weighed by their norms. Those are held fixed: the
        # magnitude's own scale would make up for a decoder that shrinks.
        return firing.decoded(firing.pre.relu(), firing.W_dec.detach().norm(dim=1))

    def auxiliary_latents(self, pre: Tensor) -> Tensor | None:
        return pre.relu()

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        self.r_mag[latents] = 0.0
        self.b_mag[latents] = 0.0

"""BatchTopK: k active latents a token on average instead of for each token."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.sae.activation.base import Activation, Firing, soft_count_penalty


class BatchTopK(Activation):
    """Of a training batch of N tokens the N k largest positive pre-activations stay (Bussmann et al., arXiv
    2412.06410).

    At inference, where a token must not depend on its batch, ``z = pre * H(pre - threshold)``: the threshold is the
    mean over training batches of the smallest value that stayed, here a moving average since k and weights move.
    """

    #: Share of the newest batch in the moving average.
    RATE = 0.01

    def __init__(self, n_latents: int) -> None:
        super().__init__(n_latents)
        self.register_buffer("threshold", torch.zeros(()))

    threshold: Tensor

    def forward(self, pre: Tensor, b_enc: Tensor | None) -> Tensor:
        return torch.where(pre > self.threshold, pre, 0).relu()

    def training_latents(self, pre: Tensor, b_enc: Tensor | None, k: int) -> Tensor:
        positive = pre.relu()
        if len(pre) == 0:
            return positive
        least = positive.detach().flatten().topk(len(pre) * k, sorted=False).values.min()
        # Where fewer are positive, all of them stay.
        if self.training and bool(least > 0):
            rate = self.RATE if bool(self.threshold > 0) else 1.0
            self.threshold.lerp_(least.to(self.threshold), rate)
        return torch.where(positive >= least, positive, 0)

    def penalty(self, firing: Firing) -> Tensor:
        """That of TopK (eq. 16)."""
        return soft_count_penalty(firing.z, firing.s_target, firing.delta)

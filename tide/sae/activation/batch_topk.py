"""BatchTopK: k active latents a token on average instead of for each token."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.sae.activation.base import Firing, above, soft_count_penalty
from tide.sae.activation.stored import StoredThreshold


class BatchTopK(StoredThreshold):
    """Of a training batch of N tokens the N k largest positive pre-activations stay (Bussmann et al., arXiv
    2412.06410).

    At inference, where a token must not depend on its batch, ``z = pre * H(pre - threshold)``: the threshold is the
    mean over training batches of the smallest value that stayed, here a moving average since k and weights move.
    """

    #: Share of the newest batch in the moving average.
    RATE = 0.01

    threshold: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__(n_latents)

    def forward(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        return above(pre, self.threshold)

    def training_latents(
        self,
        pre: Tensor,
        b_enc: Tensor | None,
        k: int,
        threshold: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        positive = pre.relu()
        if len(pre) == 0:
            return positive
        least = positive.detach().flatten().topk(len(pre) * k, sorted=False).values.min()
        # Where fewer are positive, all of them stay.
        if self.training and bool(least > 0):
            self.track(least)
        return torch.where(positive >= least, positive, 0)

    @torch.no_grad()
    def track(self, least: Tensor) -> None:
        """Moves the stored threshold towards ``least``, the smallest value that a training batch kept."""
        rate = self.RATE if bool(self.threshold > 0) else 1.0
        self.threshold.lerp_(least.to(self.threshold), rate)

    def penalty(self, firing: Firing) -> Tensor:
        """That of TopK (eq. 16)."""
        return soft_count_penalty(firing.z, firing.s_target, firing.delta)

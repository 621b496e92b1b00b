"""BatchTopK: k active latents a token on average instead of for each token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tide.sae.activation.base import Firing, above, by_row, soft_count_penalty
from tide.sae.activation.gain import TimestepGain
from tide.sae.activation.jump import Jump, near, summed
from tide.sae.activation.stored import StoredThreshold
from tide_kernels.losses import full_sum

#: With a gain the stored threshold counts as at least this: what is to be multiplied cannot be 0.
LEAST = 1e-6


class BatchTopK(StoredThreshold):
    """Of a training batch of N tokens the N k largest positive pre-activations stay (Bussmann et al., arXiv
    2412.06410).

    At inference, where a token must not depend on its batch, ``z = pre * H(pre - threshold)``: the threshold is the
    mean over training batches of the smallest value that stayed, here a moving average since k and weights move.

    With a ``gain`` latent l has the threshold ``theta_l(t) = threshold * gain_l(t)`` at timestep t
    (:class:`~tide.sae.activation.gain.TimestepGain`), and in training the N k largest ``pre_l / theta_l(t)`` stay:
    those above a common cut c. The gain learns by straight-through estimators (:mod:`tide.sae.activation.jump`) of
    ``z = pre * H(pre - c theta)``, where c moves with the gain so that as many stay. With K as defined there and sums
    over the batch::

        dc = -c (sum K dtheta) / (sum K theta)

    Training is :func:`tide_kernels.tide_loss`; :meth:`training_latents` serves ``undo``, whose loss is composed.

    Args:
        n_latents: how many latents.
        bandwidth: of the straight-through estimators by which a ``gain`` learns.
        gain: makes thresholds depend on the timestep.
    """

    #: Share of the newest batch in the moving average.
    RATE = 0.01

    threshold: Tensor

    def __init__(self, n_latents: int, bandwidth: float = 0.3, *, gain: TimestepGain | None = None) -> None:
        super().__init__(n_latents)
        self.bandwidth = bandwidth
        self.gain = gain

    def thresholds(self, embedding: Tensor | None = None) -> Tensor:
        if self.gain is None or embedding is None:
            return self.threshold
        return self.threshold.clamp(min=LEAST) * self.gain(embedding)

    def forward(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        return above(pre, by_row(self.threshold if threshold is None else threshold, group))

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
        threshold = None if threshold is None else threshold.to(pre.dtype)
        heights = self.heights(positive, b_enc, threshold, group)
        least = heights.detach().flatten().topk(len(pre) * k, sorted=False).values.min()
        if not bool(least > 0):  # where fewer are positive, all of them stay
            return positive
        if self.training:
            self.track(least)
        if self.gain is None or threshold is None:
            return torch.where(positive >= least, positive, 0)
        # Else rounding would keep out what is at the cut.
        below = least * (1 - 2 * torch.finfo(least.dtype).eps)
        return Jump.apply(pre, self._following(pre, threshold, group, below), group, self.bandwidth)

    def _following(self, pre: Tensor, threshold: Tensor, group: Tensor | None, cut: Tensor) -> Tensor:
        """``cut * threshold``, the cut a function of the threshold as well (see the class)."""
        close = near(pre.detach(), by_row(cut * threshold.detach(), group), self.bandwidth)
        kept = full_sum(summed(close, threshold, group) * threshold)
        held = kept.detach().clamp(min=torch.finfo(kept.dtype).tiny)
        return threshold * (cut * (1 - (kept - kept.detach()) / held))

    @torch.no_grad()
    def track(self, least: Tensor) -> None:
        """Moves the stored threshold towards the smallest height that a training batch kept, which without a gain is
        the smallest value; a height of 0, where fewer were positive than are to stay, changes nothing."""
        rate = torch.where(self.threshold > 0, self.RATE, 1.0) * (least > 0)  # as tensors: a GPU is not waited for
        self.threshold.lerp_(self._threshold_at(least), rate.to(self.threshold))

    def _threshold_at(self, cut: Tensor | float) -> Tensor:
        cut = torch.as_tensor(cut).to(self.threshold)
        return cut if self.gain is None else self.threshold.clamp(min=LEAST) * cut

    def penalty(self, firing: Firing) -> Tensor:
        """That of TopK (eq. 16)."""
        return soft_count_penalty(firing.z, firing.s_target, firing.delta)

    def latent_parameters(self) -> list[nn.Parameter]:
        return [] if self.gain is None else [self.gain.by_latent]

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        if self.gain is not None:
            self.gain.restart(latents)

    @torch.no_grad()
    def heights(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        """Without a gain pre-activations, with one in units of the thresholds as they are."""
        return pre if self.gain is None or threshold is None else pre / by_row(threshold, group)

    @torch.no_grad()
    def set_cut(self, cut: float) -> None:
        self.threshold.copy_(self._threshold_at(cut))

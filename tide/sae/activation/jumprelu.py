"""JumpReLU: a learnt threshold for each latent, trained through its jump by straight-through estimators."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tide.sae.activation.base import Activation, Firing, by_row
from tide.sae.activation.gain import SPEED, TimestepGain
from tide.sae.activation.jump import Jump, Step
from tide.world import World
from tide_kernels.losses import full_sum


class JumpReLU(Activation):
    """``z = pre * H(pre - theta)``, theta > 0 learnt as its logarithm over :data:`SPEED` (Rajamanoharan et al., arXiv
    2407.14435).

    Theta learns by the estimators of :mod:`tide.sae.activation.jump`, with the width ``bandwidth``. The penalty aims at
    k, so that the knob is TopK's: ``(L0 / k - 1)^2`` with L0 = sum_j H(pre_j - theta_j) in the mean over tokens. It
    moves theta alone. The paper's bandwidth and first theta are for activations of mean square norm 1; here
    ``|x|^2 / d`` is 1 and runs are short, so theta starts where k latents a token are above it, and the bandwidth is
    wide enough for some pre-activations of every batch to be near.

    With a ``gain`` latent l has the threshold ``theta_l(t) = theta_l * gain_l(t)`` at timestep t
    (:class:`~tide.sae.activation.gain.TimestepGain`), learnt by the same estimators.
    """

    def __init__(self, n_latents: int, bandwidth: float = 0.3, *, gain: TimestepGain | None = None) -> None:
        super().__init__(n_latents)
        self.bandwidth = bandwidth
        self.slow_log_threshold = nn.Parameter(torch.full((n_latents,), math.log(bandwidth) / SPEED))
        self.gain = gain

    @property
    def threshold(self) -> Tensor:
        """theta ``[n_latents]``."""
        return (SPEED * self.slow_log_threshold).exp()

    def thresholds(self, embedding: Tensor | None = None) -> Tensor:
        if self.gain is None or embedding is None:
            return self.threshold
        return self.threshold * self.gain(embedding)

    def forward(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        return Jump.apply(pre, self.threshold if threshold is None else threshold, group, self.bandwidth)

    def active(self, pre: Tensor, threshold: Tensor | None = None, group: Tensor | None = None) -> Tensor:
        """``H(pre - theta)``, 1 where a latent fires."""
        return Step.apply(pre, self.threshold if threshold is None else threshold, group, self.bandwidth)

    def penalty(self, firing: Firing) -> Tensor:
        active = self.active(firing.pre, firing.threshold, firing.group)
        return (full_sum(active) / max(1, len(firing.pre)) / firing.k - 1).square()

    @torch.no_grad()
    def calibrate(self, pre: Tensor, k: int, among: World) -> None:
        wanted = len(pre) * k
        largest = among.gathered(pre.flatten().topk(min(wanted, pre.numel()), sorted=False).values)
        least = largest.topk(wanted, sorted=False).values.min()
        self.slow_log_threshold.fill_(float(least.clamp(min=self.bandwidth).log()) / SPEED)

    def latent_parameters(self) -> list[nn.Parameter]:
        return [self.slow_log_threshold] + ([] if self.gain is None else [self.gain.by_latent])

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        # A revived latent's pre-activations are small: under a living threshold it would never fire.
        self.slow_log_threshold[latents] = math.log(self.bandwidth) / SPEED
        if self.gain is not None:
            self.gain.restart(latents)

    @property
    def matched(self) -> bool:
        return True

    @torch.no_grad()
    def heights(
        self, pre: Tensor, b_enc: Tensor | None, threshold: Tensor | None = None, group: Tensor | None = None
    ) -> Tensor:
        """In units of the thresholds as they are: :meth:`set_cut` multiplies all of them."""
        return pre / by_row(self.threshold if threshold is None else threshold, group)

    @torch.no_grad()
    def set_cut(self, cut: float) -> None:
        self.slow_log_threshold.add_(math.log(cut) / SPEED)

"""JumpReLU: a learnt threshold for each latent, trained through its jump by straight-through estimators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tide.sae.activation.base import Activation, Firing, above, by_row
from tide.sae.activation.gain import SPEED, TimestepGain
from tide_kernels.losses import full_sum


class JumpReLU(Activation):
    """``z = pre * H(pre - theta)``, theta > 0 learnt as its logarithm over :data:`SPEED` (Rajamanoharan et al., arXiv
    2407.14435).

    H has no useful derivative in theta, so that of its smoothed expectation is taken, with a rectangular kernel K of
    width ``bandwidth``::

        dz/dtheta = -(theta / bandwidth) K((pre - theta) / bandwidth)
        dH/dtheta = -(1 / bandwidth) K((pre - theta) / bandwidth)

    The penalty aims at k, so that the knob is TopK's: ``(L0 / k - 1)^2`` with L0 = sum_j H(pre_j - theta_j) in the
    mean over tokens. It moves theta alone. The paper's bandwidth and first theta are for activations of mean square
    norm 1; here ``|x|^2 / d`` is 1 and runs are short, so theta starts where k latents a token are above it, and the
    bandwidth is wide enough for some pre-activations of every batch to be near.

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
        return _Jump.apply(pre, self.threshold if threshold is None else threshold, group, self.bandwidth)

    def active(self, pre: Tensor, threshold: Tensor | None = None, group: Tensor | None = None) -> Tensor:
        """``H(pre - theta)``, 1 where a latent fires."""
        return _Step.apply(pre, self.threshold if threshold is None else threshold, group, self.bandwidth)

    def penalty(self, firing: Firing) -> Tensor:
        active = self.active(firing.pre, firing.threshold, firing.group)
        return (full_sum(active) / max(1, len(firing.pre)) / firing.k - 1).square()

    @torch.no_grad()
    def calibrate(self, pre: Tensor, k: int) -> None:
        least = pre.flatten().topk(len(pre) * k, sorted=False).values.min()
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
        self.slow_log_threshold += math.log(cut) / SPEED


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K / bandwidth: 1 / bandwidth within half a bandwidth of the threshold, else 0."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


def _summed(by_token: Tensor, threshold: Tensor, group: Tensor | None) -> Tensor:
    """What tokens pass back to ``threshold``, added up in each row of it."""
    if threshold.dim() < 2 or group is None:
        return by_token.sum(0).expand_as(threshold)
    return torch.zeros_like(threshold).index_add_(0, group, by_token)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, group: Tensor | None, bandwidth: float) -> Tensor:
        threshold = threshold.to(pre.dtype)
        ctx.save_for_backward(pre, threshold, group)
        ctx.bandwidth = bandwidth
        return above(pre, by_row(threshold, group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        pre, threshold, group = ctx.saved_tensors
        theta = by_row(threshold, group)
        by_threshold = -(grad * theta * _near(pre, theta, ctx.bandwidth))
        return torch.where(pre <= theta, 0, grad), _summed(by_threshold, threshold, group), None, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, group: Tensor | None, bandwidth: float) -> Tensor:
        threshold = threshold.to(pre.dtype)
        ctx.save_for_backward(pre, threshold, group)
        ctx.bandwidth = bandwidth
        # Counts of bfloat16 ones stop growing at 256.
        return (pre > by_row(threshold, group)).to(torch.promote_types(pre.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        (grad,) = grads
        pre, threshold, group = ctx.saved_tensors
        by_threshold = -(grad * _near(pre, by_row(threshold, group), ctx.bandwidth))
        return None, _summed(by_threshold, threshold, group), None, None

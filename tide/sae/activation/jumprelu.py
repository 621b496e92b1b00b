"""JumpReLU: a learnt threshold for each latent, trained through its jump by straight-through estimators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tide.sae.activation.base import Activation, Firing
from tide_kernels.losses import full_sum

#: A step of Adam moves a parameter by the learning rate at most, which for ln(theta) is too little in a short run: the
#: encoder, which adapts faster, left L0 at a third of what was asked for.
SPEED = 10.0


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
    """

    def __init__(self, n_latents: int, bandwidth: float = 0.3) -> None:
        super().__init__(n_latents)
        self.bandwidth = bandwidth
        self.slow_log_threshold = nn.Parameter(torch.full((n_latents,), math.log(bandwidth) / SPEED))

    @property
    def threshold(self) -> Tensor:
        """theta ``[n_latents]``."""
        return (SPEED * self.slow_log_threshold).exp()

    def forward(self, pre: Tensor, b_enc: Tensor | None) -> Tensor:
        return _Jump.apply(pre, self.threshold, self.bandwidth)

    def active(self, pre: Tensor) -> Tensor:
        """``H(pre - theta)``, 1 where a latent fires."""
        return _Step.apply(pre, self.threshold, self.bandwidth)

    def penalty(self, firing: Firing) -> Tensor:
        return (full_sum(self.active(firing.pre)) / max(1, len(firing.pre)) / firing.k - 1).square()

    @torch.no_grad()
    def calibrate(self, pre: Tensor, k: int) -> None:
        least = pre.flatten().topk(len(pre) * k, sorted=False).values.min()
        self.slow_log_threshold.fill_(float(least.clamp(min=self.bandwidth).log()) / SPEED)

    @torch.no_grad()
    def restart(self, latents: Tensor) -> None:
        # A revived latent's pre-activations are small: under a living threshold it would never fire.
        self.slow_log_threshold[latents] = math.log(self.bandwidth) / SPEED


def _near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K / bandwidth: 1 / bandwidth within half a bandwidth of the threshold, else 0."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        threshold = threshold.to(pre.dtype)
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(pre > threshold, pre, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        pre, threshold = ctx.saved_tensors
        by_threshold = -(grad * threshold * _near(pre, threshold, ctx.bandwidth)).sum(0)
        return torch.where(pre > threshold, grad, 0), by_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        threshold = threshold.to(pre.dtype)
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        # Counts of bfloat16 ones stop growing at 256.
        return (pre > threshold).to(torch.promote_types(pre.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        (grad,) = grads
        pre, threshold = ctx.saved_tensors
        return None, -(grad * _near(pre, threshold, ctx.bandwidth)).sum(0), None

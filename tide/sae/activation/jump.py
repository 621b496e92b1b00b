"""The jump at a threshold, and the straight-through estimators by which thresholds learn.

H has no useful derivative in theta, so that of its smoothed expectation is taken, with a rectangular kernel K of width
``bandwidth`` (Rajamanoharan et al., arXiv 2407.14435)::

    z = pre * H(pre - theta)
    dz/dtheta = -(theta / bandwidth) K((pre - theta) / bandwidth)
    dH/dtheta = -(1 / bandwidth) K((pre - theta) / bandwidth)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tide.sae.activation.base import above, by_row


def near(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """``K / bandwidth``: 1 / bandwidth within half a bandwidth of the threshold, else 0."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


def summed(by_token: Tensor, threshold: Tensor, group: Tensor | None) -> Tensor:
    """What tokens pass back to ``threshold``, added up in each row of it: by a product, which gives the same bits on
    every run, in full precision."""
    if threshold.dim() < 2 or group is None:
        return by_token.sum(0).expand_as(threshold)
    of_row = group == torch.arange(len(threshold), device=group.device).unsqueeze(1)
    with torch.autocast(by_token.device.type, enabled=False):
        return of_row.to(by_token.dtype) @ by_token


class Jump(torch.autograd.Function):
    """``pre * H(pre - theta)`` of ``pre [N, n_latents]``, a threshold with its group, and the bandwidth."""

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
        by_threshold = -(grad * theta * near(pre, theta, ctx.bandwidth))
        return torch.where(pre <= theta, 0, grad), summed(by_threshold, threshold, group), None, None


class Step(torch.autograd.Function):
    """``H(pre - theta)``, arguments as for :class:`Jump`; passes nothing back to ``pre``."""

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
        by_threshold = -(grad * near(pre, by_row(threshold, group), ctx.bandwidth))
        return None, summed(by_threshold, threshold, group), None, None

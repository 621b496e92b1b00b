"""Schedules: cosine annealing with warm-up, and the progressive sparsity of k."""

from __future__ import annotations

import math

from tide.training.config import ProgressiveK


def cosine_lr(step: int, steps: int, lr: float, warmup: float, final: float) -> float:
    """Learning rate of ``step`` (from 0): linear warm-up over ``warmup`` of the steps, then a half cosine from
    ``lr`` to ``final * lr``."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return lr * (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    return lr * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def progressive_k(step: int, steps: int, k: int, n_latents: int, config: ProgressiveK) -> int:
    """k of ``step`` (from 0): from ``start * k``, at most ``n_latents``, down to ``k`` over the first ``length`` of the
    steps."""
    span = config.length * steps
    if config.shape == "off" or step >= span:
        return k
    progress = step / span
    first = min(config.start * k, n_latents)
    if config.shape == "linear":
        value = first + (k - first) * progress
    elif config.shape == "cosine":
        value = k + (first - k) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        value = first * (k / first) ** progress
    return max(k, round(value))

"""Timesteps at which activations are read: a few of those that a sampling run visits."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.adapters import Adapter
from tide.errors import TideError

#: Steps of the sampling run that timesteps are taken from.
RUN_STEPS = 20


def spread_timesteps(adapter: Adapter, n: int) -> Tensor:
    """``n`` timesteps ``[n]`` spread over the whole sampling run, descending."""
    run = adapter.sampling_timesteps(RUN_STEPS)
    if n > len(run):
        raise TideError(f"{n} timesteps are more than a sampling run of {RUN_STEPS} steps has; give 1..{len(run)}")
    return _spread(run, n)


def concept_timesteps(adapter: Adapter, n: int) -> Tensor:
    """``n`` timesteps ``[n]`` of the later half of the sampling run, where the noise no longer hides the image."""
    run = adapter.sampling_timesteps(RUN_STEPS)
    later = run[len(run) // 2 :]
    if n > len(later):
        raise TideError(f"{n} timesteps are more than the later half of a sampling run has; give 1..{len(later)}")
    return _spread(later, n)


def _spread(timesteps: Tensor, n: int) -> Tensor:
    return timesteps[torch.linspace(0, len(timesteps) - 1, n).round().long()]

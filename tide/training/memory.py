"""Checks that a training fits in memory before anything of it is built."""

from __future__ import annotations

from tide.devices import device_memory, device_of
from tide.errors import TideError
from tide.training.config import TrainConfig


def check_memory(config: TrainConfig, d_model: int) -> None:
    """Raises :class:`~tide.errors.TideError` if ``config.device`` is not there, or training cannot fit its memory.

    It counts only what every backend needs: in float32, both weights ``[n_latents, d_model]`` with their gradients and
    two moments, and the activations and reconstruction of a step's rows. A training that passes may still not fit.
    """
    n_latents, _ = config.sizes(d_model)
    weights, rows = 4 * 4 * 2 * n_latents * d_model, 2 * 4 * config.batch_tokens * d_model
    memory = device_memory(device_of(config.device))
    if memory is None or weights + rows <= memory:
        return
    size, remedy = f"n_latents = {n_latents}", "n_latents (or expansion)"
    if rows > weights:
        size, remedy = f"batch_tokens = {config.batch_tokens}", "batch_tokens"
    raise TideError(
        f"training with {size} of width {d_model} takes {_gigabytes(weights + rows)} of memory at least and "
        f"{config.device} has {_gigabytes(memory)}; lower {remedy}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size < 10**15 else f"over {10**6} GB"

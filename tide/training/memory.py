"""Checks that a training fits in memory before anything of it is built."""

from __future__ import annotations

from typing import NamedTuple

from tide.devices import device_memory, device_of
from tide.errors import TideError
from tide.training.config import TrainConfig


class Need(NamedTuple):
    """Bytes that every backend needs at least."""

    #: Both weights [n_latents, d_model] of each block, or one rank's part of the latents, with their gradients and two
    #: moments, in float32.
    weights: int
    #: The activations, their targets and the reconstruction of a step's rows, and the weights rounded to bfloat16 where
    #: a step does that; of a block at a time.
    step: int
    #: The rows that are mixed, of each block, and their targets.
    buffer: int

    @property
    def total(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        return (
            f"{_gigabytes(self.weights)} of weights, gradients and moments, and {_gigabytes(self.buffer)} of "
            "activations to mix"
        )


def need(
    config: TrainConfig,
    d_model: int,
    *,
    blocks: int = 1,
    buffer_rows: int = 0,
    itemsize: int = 4,
    target: bool = False,
) -> Need:
    """What a training of so many blocks needs, in each rank; ``itemsize``: bytes of a number of the rows that are
    mixed; ``target``: of transcoders."""
    n_latents, _ = config.sizes(d_model)
    n_latents //= config.shard_latents
    rows = (2 + target) * 4 * config.batch_tokens * d_model
    rounded = 2 * 2 * n_latents * d_model if config.precision == "bf16" else 0
    return Need(
        weights=blocks * 4 * 4 * 2 * n_latents * d_model,
        step=rows + rounded,
        buffer=(1 + target) * blocks * itemsize * buffer_rows * d_model,
    )


def check_memory(
    config: TrainConfig,
    d_model: int,
    *,
    blocks: int = 1,
    buffer_rows: int = 0,
    itemsize: int = 4,
    target: bool = False,
) -> None:
    """Raises :class:`~tide.errors.TideError` if ``config.device`` is not there, or training cannot fit its memory.

    It counts what :func:`need` does. A training that passes may still not fit.
    """
    needed = need(config, d_model, blocks=blocks, buffer_rows=buffer_rows, itemsize=itemsize, target=target)
    memory = device_memory(device_of(config.device))
    if memory is None or needed.total <= memory:
        return
    size, remedy = f"n_latents = {config.sizes(d_model)[0]}", "n_latents (or expansion)"
    if config.shard_latents > 1:
        size += f" among {config.shard_latents} ranks"
    if needed.buffer > max(needed.step, needed.weights):
        size, remedy = f"{buffer_rows} rows to mix", "buffer_rows"
    elif needed.step > needed.weights:
        size, remedy = f"batch_tokens = {config.batch_tokens}", "batch_tokens"
    elif blocks > 1:
        size, remedy = f"{blocks} blocks of {size}", f"{remedy}, or train fewer blocks at a time"
    elif config.activation not in ("relu", "gated") and not (config.undo or config.loss.prefixes):
        remedy += ", or let more ranks divide them (shard_latents)"
    raise TideError(
        f"training with {size} of width {d_model} takes {_gigabytes(needed.total)} of memory at least and "
        f"{config.device} has {_gigabytes(memory)}; lower {remedy}"
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size < 10**15 else f"over {10**6} GB"

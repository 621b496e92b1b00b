"""Options of a training configuration that have no effect beside the others."""

from __future__ import annotations

from collections.abc import Iterator

from tide.sae.activation import TIMED
from tide.training.config import TrainConfig


def idle_options(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """The full names of options that have no effect given the others, and why ("with k")."""
    if not config.modulation:
        for name in ("init", "chunk", "trainable", "lr"):
            yield f"modulation_{name}", "without modulation"
        yield "pre_norm", "without modulation"
        yield "undo", "without modulation"
        yield "timestep_thresholds", "without modulation"
    if config.modulation_init != "adaln":
        yield "modulation_chunk", f"with modulation_init = {config.modulation_init}"
    if not config.modulation_trainable:
        yield "modulation_lr", "with modulation_trainable = false"
    if config.activation != "jumprelu" and not config.timestep_thresholds:
        yield "bandwidth", f"with activation = {config.activation}"
    if config.activation not in TIMED:
        yield "timestep_thresholds", f"with activation = {config.activation}"
    if config.activation not in ("relu", "gated"):
        yield "match_l0", f"with activation = {config.activation}"
    if config.n_latents is not None:
        yield "expansion", "with n_latents"
    if config.k is not None:
        yield "density", "with k"
    if config.progressive_k.shape == "off":
        yield "progressive_k.start", "with progressive_k.shape = off"
        yield "progressive_k.length", "with progressive_k.shape = off"
    yield from _idle_losses(config)


def _idle_losses(config: TrainConfig) -> Iterator[tuple[str, str]]:
    if config.loss.sparsity == 0:
        yield "loss.s_target", "with loss.sparsity = 0"
        yield "loss.delta", "with loss.sparsity = 0"
    if config.activation not in ("topk", "batch_topk"):
        yield "loss.s_target", f"with activation = {config.activation}"
        yield "loss.delta", f"with activation = {config.activation}"
    if config.loss.auxk == 0:
        yield "loss.k_aux", "with loss.auxk = 0"
        if config.revival.every == 0:
            yield "revival.after_tokens", "with revival.every = 0 and loss.auxk = 0"

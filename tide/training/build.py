"""A fresh model for a block of a diffusion transformer."""

from __future__ import annotations

import torch

from tide.adapters.base import Adapter, Block
from tide.sae.model import TIDE
from tide.sae.modulation import Modulation
from tide.training.config import TrainConfig
from tide.training.memory import check_memory
from tide.world import current


def build_model(
    adapter: Adapter, block: Block, config: TrainConfig, *, tensor: str = "output", target: str | None = None
) -> TIDE:
    """A fresh TIDE (or SAE, or transcoder) for one block of the adapter's transformer, its modulation started as
    asked. With ``config.shard_latents`` it has this rank's part of the latents.

    Args:
        adapter: of the pipeline.
        block: a number, negative from the end, or "penultimate".
        config: sizes and options.
        tensor: what of the block is encoded.
        target: what a transcoder reconstructs; None for an autoencoder.
    """
    check_memory(config, adapter.d_model, target=target is not None)
    index = adapter.resolve_block(block)
    modulation: Modulation | None = None
    if config.modulation:
        modulation = adapter.modulation(index, chunk=config.modulation_chunk)
        if config.modulation_init == "identity":
            modulation.start_as_identity()
        elif config.modulation_init == "random":
            modulation = Modulation.random(modulation.config, torch.Generator().manual_seed(config.seed))
    model_config = config.model_config(
        adapter.d_model,
        None if modulation is None else modulation.config,
        family=adapter.family,
        pipeline=adapter.name,
        block=index,
        tensor=tensor,
        target=target,
        component=adapter.component,
    )
    among = current(config.shard_latents).latents
    model = TIDE(model_config, modulation, backend=config.backend, seed=config.seed, among=among)
    if model.modulation is not None:
        model.modulation.requires_grad_(config.modulation_trainable)
    return model

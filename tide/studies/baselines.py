"""What trained latents must beat: other readouts of the same activations, and parts drawn at random in their place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tide.adapters import Adapter, adapter_for
from tide.sae import TIDE, TIDEConfig
from tide.scenes.pipeline import build_transformer, load_pipeline

#: Of the weights of the random transformer.
SEED = 20_000

#: Active latents of a dictionary that stays random.
RANDOM_K = 64


def scenes_adapter(device: torch.device | str = "cpu", *, random: bool = False) -> Adapter:
    """The bundled pipeline on ``device``; with ``random`` its transformer has the weights that a training starts
    from, the same in every process."""
    pipe = load_pipeline()
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            transformer = build_transformer().eval()
        transformer.register_to_config(_name_or_path="scenes, random weights")
        pipe.register_modules(transformer=transformer)
    return adapter_for(pipe.to(device))


def linear_readout(directions: Tensor) -> TIDE:
    """An untrained model whose latents are the positive and the negative parts of ``directions [n, d_model]``."""
    n, d_model = directions.shape
    both = torch.cat([directions, -directions])
    return _with(TIDEConfig(d_model=d_model, n_latents=2 * n, k=2 * n, activation="relu", modulation=None), both)


def random_dictionary(model: TIDE) -> TIDE:
    """A TopK dictionary of the model's size whose directions are random and stay so, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(model.n_latents, model.d_model, generator=generator)
    k = min(RANDOM_K, model.n_latents)
    config = TIDEConfig(d_model=model.d_model, n_latents=model.n_latents, k=k, activation="topk", modulation=None)
    return _with(config, directions / directions.norm(dim=1, keepdim=True))


def _with(config: TIDEConfig, encoder: Tensor) -> TIDE:
    model = TIDE(config)
    state: Mapping[str, Tensor] = dict(model.named_parameters())
    with torch.no_grad():
        for parameter in state.values():
            parameter.zero_()
        state["W_enc"].copy_(encoder)
    return model.eval().requires_grad_(False)

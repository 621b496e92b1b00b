"""Whether an image is going to show a concept, told by few latents, and by what needs no trained dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tide.interpretation import Annotated, fit_detectors
from tide.sae import TIDE, TIDEConfig

#: Latents, neurons or components that each detector reads.
READ = 32
#: Active latents of the dictionary that stays random.
RANDOM_K = 64


def detection(model: TIDE, fit: Annotated, held_out: Annotated, concepts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> concept -> AUROC over the held-out images at the first timestep and on average.

    Beside the model's latents: raw neurons and principal components, each as two latents for its two signs, and a TopK
    dictionary of the model's size with random directions.
    """
    rows = fit.x.flatten(0, 2).float()
    sources = {
        "latents": model,
        "raw neurons": linear_readout(torch.eye(rows.shape[1])),
        "principal components": linear_readout(_components(rows)),
        "random dictionary": _random(model, rows),
    }
    return {name: _areas(source, fit, held_out, concepts) for name, source in sources.items()}


def _areas(source: TIDE, fit: Annotated, held_out: Annotated, concepts: Sequence[str]) -> dict[str, Any]:
    found = fit_detectors(source, fit, held_out, concepts, per="image", n_latents=READ)
    return {name: {"first": each.auroc[0], "mean": each.mean_auroc} for name, each in found.items()}


def linear_readout(directions: Tensor) -> TIDE:
    """An untrained model whose latents are the positive and the negative parts of ``directions [n, d_model]``."""
    n, d_model = directions.shape
    both = torch.cat([directions, -directions])
    return _with(TIDEConfig(d_model=d_model, n_latents=2 * n, k=2 * n, activation="relu", modulation=None), both)


def _components(rows: Tensor) -> Tensor:
    """The principal directions of ``rows``, strongest first, ``[d_model, d_model]``."""
    centred = rows - rows.mean(0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0)


def _random(model: TIDE, rows: Tensor) -> TIDE:
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

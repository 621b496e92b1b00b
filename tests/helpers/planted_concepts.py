"""Activations whose latents were planted, and a model that reads them."""

from __future__ import annotations

import torch

from tide.interpretation import Annotated
from tide.sae import TIDE, TIDEConfig

#: Latents, which are the channels of the activations; a concept raises the two of its own.
N = 12
PLANTED = {"roof": (2, 7), "snow": (4, 9)}
TIMESTEPS = torch.tensor([900.0, 100.0])


def model(activation: str = "relu") -> TIDE:
    sae = TIDE(TIDEConfig(d_model=N, n_latents=N, k=N, activation=activation, modulation=None))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(N))
        sae.W_dec.copy_(torch.eye(N))
    return sae.eval()


def images(seed: int, n: int = 24, *, told: tuple[str, ...] = ("roof", "snow")) -> Annotated:
    """Each concept is on a quarter of the tokens of half of the images; it raises one of its latents at the first
    timestep and both at the second. Concepts that are not ``told`` raise none."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, n, 16, N, generator=generator)
    masks = {}
    for i, (concept, (first, second)) in enumerate(PLANTED.items()):
        shown = torch.rand(n, 1, generator=generator) < 0.5
        shown[i], shown[i + 2] = True, False
        masks[concept] = shown & (torch.rand(n, 16, generator=generator) < 0.25)
        masks[concept][i, 0] = True
        if concept in told:
            x[0, ..., first] += 2 * masks[concept]
            x[1, ..., first] += 2 * masks[concept]
            x[1, ..., second] += 2 * masks[concept]
    return Annotated(TIMESTEPS, x, masks)

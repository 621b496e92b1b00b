"""Autoencoders and activations of whole numbers: every sum is exact, whatever its order, and many values are equal."""

from __future__ import annotations

import torch

from tide.sae import TIDE, TIDEConfig

#: Four, so that averages over them are exact, too.
TIMESTEPS = torch.tensor([900.0, 600.0, 300.0, 100.0])
D_MODEL, N_LATENTS, DEAD = 5, 11, 4


def integers(low: int, high: int, *shape: int, seed: int) -> torch.Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def model(activation: str = "relu", n_latents: int = N_LATENTS, seed: int = 1) -> TIDE:
    """Its latent :data:`DEAD` never fires."""
    sae = TIDE(TIDEConfig(D_MODEL, n_latents, 3, activation=activation))
    with torch.no_grad():
        sae.W_enc.copy_(integers(-2, 2, n_latents, D_MODEL, seed=seed))
        sae.b_enc.zero_()
        sae.b_enc[DEAD] = -1000
    return sae


def activations(n_images: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """``[timesteps, images, tokens, D_MODEL]``."""
    return integers(-3, 3, len(TIMESTEPS), n_images, grid[0] * grid[1], D_MODEL, seed=seed)


def dense(sae: TIDE, x: torch.Tensor) -> torch.Tensor:
    """All latents at once, ``[timesteps, images, tokens, n_latents]``."""
    return torch.stack([sae.dense(each, t) for each, t in zip(x, TIMESTEPS.tolist(), strict=True)])

"""A small bank of random numbers, of the tests' SAE or another one."""

from __future__ import annotations

import torch

from tide.editing import Bank
from tide.editing.bank import Concept, Difference, SparseMeans
from tide.editing.target_file import sae_record
from tide.sae import TIDE

TIMESTEPS = torch.tensor([900.0, 100.0])


def small_bank(model: TIDE, names: tuple[str, ...] = ("red", "blue", "house"), n: int = 10) -> Bank:
    """Each concept has ``n`` tokens; the detector of the i-th reads 16 latents from 16 i on, and is on where one
    of them is active."""
    generator = torch.Generator().manual_seed(0)
    width, n_latents = model.d_model, model.n_latents

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator)

    concepts = {}
    for i, name in enumerate(names):
        tokens = numbers(n, width).half()
        means = []
        for _ in range(2):
            latents = numbers(n_latents).clamp(min=0)
            means.append(SparseMeans.at(latents, latents.topk(min(16, n_latents), dim=1).indices))
        concepts[name] = Concept(
            tokens=tokens,
            mean=tokens.float().mean(1),
            present=means[0],
            absent=means[1],
            features=(torch.arange(16 * i, 16 * i + 16) % n_latents).int(),
            weights=torch.ones(2, 16),
            thresholds=torch.zeros(2),
        )
    contrasts = {(names[0], names[1]): Difference(numbers(n, width).half(), numbers(n, width).half())}
    return Bank(sae_record(model), TIMESTEPS, concepts, contrasts)

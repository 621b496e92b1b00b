"""What trained latents must beat."""

from __future__ import annotations

import torch

from tide.sae import TIDE, TIDEConfig
from tide.studies.baselines import RANDOM_K, random_dictionary


def test_a_random_dictionary_has_the_models_size_and_is_always_the_same():
    model = TIDE(TIDEConfig(d_model=24, n_latents=96, k=4))
    first, second = random_dictionary(model), random_dictionary(model)
    assert torch.equal(first.W_enc, second.W_enc)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    latents = first.dense(x)
    assert latents.shape == (5, 96)
    # Half of the 96 projections are positive on average: at most k of them are active.
    assert ((latents > 0).sum(1) <= RANDOM_K).all()
    assert (latents > 0).any(1).all()
    assert not any(parameter.requires_grad for parameter in first.parameters())

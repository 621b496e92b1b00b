"""Some latents of a TIDE as a model of their own."""

from __future__ import annotations

import pytest
import torch

from tide.errors import TideError
from tide.sae import TIDE, TIDEConfig


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batch_topk", "gated"])
def test_some_latents_are_a_model_of_their_own(activation):
    """In any order, with the bits of the whole's latents; of per-latent parameters their own rows."""
    config = TIDEConfig(8, 16, 4, activation=activation)
    whole = TIDE(config, seed=3).eval()
    with torch.no_grad():
        for i, parameter in enumerate(whole.parameters()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    chosen = [9, 2, 15]
    few = whole.only(chosen)
    assert (few.n_latents, few.config.k) == (3, 3)
    assert torch.allclose(few.dense(x), whole.dense(x)[:, chosen], atol=1e-6)
    few.W_enc.data.zero_()
    assert whole.W_enc.abs().sum() > 0, "in memory of its own"


def test_some_latents_that_cannot_be_alone():
    with pytest.raises(TideError, match="TopK picks among all latents"):
        TIDE(TIDEConfig(8, 16, 4)).only([1])
    relu = TIDE(TIDEConfig(8, 16, 4, activation="relu"))
    for features, message in (([], "none"), ([1, 1], "not all different"), ([16], "latents 0..15|has 0..15")):
        with pytest.raises(TideError, match=message):
            relu.only(features)

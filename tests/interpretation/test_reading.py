"""Whole images read at several timesteps, against one image and one pass at a time."""

from __future__ import annotations

import pytest
import torch

from tide.activations import Prepared
from tide.adapters import adapter_for, tap
from tide.errors import TideError
from tide.interpretation.reading import noised_activations
from tide.sae import TIDE, TIDEConfig

TIMESTEPS = torch.tensor([800, 200])


@pytest.mark.parametrize(
    ("tensor", "target"), [("output", None), ("attention", None), ("feed_forward_input", "feed_forward")]
)
@pytest.mark.parametrize("name", ["alpha", "alpha_with_sizes"])
def test_equals_one_image_at_a_time(request, name, tensor, target):
    """With sizes the model is conditioned. Of a transcoder the input is read."""
    adapter = adapter_for(request.getfixturevalue(name))
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 16, 16, generator=generator)
    text = adapter.encode_prompts(["a red cube", "a tree", "a house on snow"], 20)
    block, conditioned = adapter.n_blocks - 2, name == "alpha_with_sizes"
    model = TIDE(TIDEConfig(adapter.d_model, 64, 8, block=block, tensor=tensor, target=target))
    x, conditioning = noised_activations(adapter, model, Prepared(latents, text), noise, TIMESTEPS)
    assert x.shape == (2, 3, 64, adapter.d_model)
    assert (conditioning is not None) == conditioned
    for i, t in enumerate(TIMESTEPS.tolist()):
        for j in range(3):
            seen = []
            one = {key: value[j : j + 1] for key, value in text.items()}
            noisy = adapter.add_noise(latents[j : j + 1], noise[j : j + 1], t)
            keep = {block: lambda x, call, seen=seen: seen.append((x.clone(), call.conditioning))}
            with torch.no_grad(), tap(adapter, keep, tensor):
                adapter.denoise(noisy, t, one)
            torch.testing.assert_close(x[i, j], seen[0][0][0], rtol=1e-4, atol=1e-4)
            if conditioned:
                torch.testing.assert_close(conditioning[i, j], seen[0][1][0], rtol=1e-4, atol=1e-4)


def test_a_model_without_a_block(alpha):
    images = Prepared(torch.zeros(1, 4, 16, 16), {})
    with pytest.raises(TideError, match="does not know its block; train it with `tide train`"):
        noised_activations(adapter_for(alpha), TIDE(TIDEConfig(192, 64, 8)), images, images.latents, TIMESTEPS)

"""Tokens of several blocks, read in the same passes, against each block read whole."""

from __future__ import annotations

import math

import pytest
import torch

from tide.activations import Prepared
from tide.activations.collect import sample_noise
from tide.adapters import adapter_for
from tide.errors import TideError
from tide.evaluation.block_tokens import read_tokens, token_places
from tide.interpretation.reading import noised_activations
from tide.sae import TIDE, TIDEConfig

TIMESTEPS = torch.tensor([900.0, 300.0])


@pytest.fixture(scope="module")
def images(adapter) -> list[Prepared]:
    """Three images in batches of two and one."""
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = adapter.encode_prompts(["a red cube", "a tree", "a house, far"], 20)
    rows = (slice(0, 2), slice(2, 3))
    return [Prepared(latents[part], {name: value[part] for name, value in text.items()}) for part in rows]


def test_tokens_are_those_of_the_whole_image(adapter, images):
    places = token_places(3, 64, 0.25, seed=1)
    assert places.shape == (3, 16)
    found = read_tokens(adapter, images, [2, 6], TIMESTEPS, places, seed=5)
    for block, tokens in found.items():
        model = TIDE(TIDEConfig(192, 64, 8, block=block))
        for first, part in ((0, images[0]), (2, images[1])):
            noise = sample_noise(part.latents.shape, 5, first)
            whole, _ = noised_activations(adapter, model, part, noise, TIMESTEPS)
            for i in range(len(part.latents)):
                torch.testing.assert_close(tokens.x[:, first + i], whole[:, i, places[first + i]])


def test_the_conditioning_of_every_image_is_kept(alpha_with_sizes):
    """Of a pipeline that is conditioned on the image's size, at every timestep."""
    adapter = adapter_for(alpha_with_sizes)
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    data = [Prepared(latents, adapter.encode_prompts(["a", "b", "c"], 20))]
    n = math.prod(adapter.token_grid(16, 16))
    tokens = read_tokens(adapter, data, [1], TIMESTEPS, token_places(3, n, 0.25, seed=0))[1]
    _, conditioning = noised_activations(
        adapter, TIDE(TIDEConfig(48, 64, 8, block=1)), data[0], sample_noise(latents.shape, 0, 0), TIMESTEPS
    )
    assert torch.equal(tokens.conditioning, conditioning)
    x, position = tokens.at(1, torch.device("cpu"))
    assert (len(x), float(position.timestep)) == (3 * (n // 4), 300)
    assert torch.equal(position.conditioning, conditioning[1])


def test_blocks_share_the_passes(adapter, images):
    seen = []
    handle = adapter.transformer.register_forward_pre_hook(lambda *_: seen.append(1))
    read_tokens(adapter, images, range(8), TIMESTEPS, token_places(3, 64, 0.1, seed=0))
    handle.remove()
    assert len(seen) == 2 * 2  # batches, timesteps


def test_places_of_an_image_do_not_depend_on_the_others():
    assert torch.equal(token_places(5, 64, 0.2, seed=0)[:2], token_places(2, 64, 0.2, seed=0))
    assert not torch.equal(token_places(2, 64, 0.2, seed=0), token_places(2, 64, 0.2, seed=1))


def test_activations_that_are_not_finite(adapter, images):
    broken = [Prepared(part.latents * torch.nan, part.text) for part in images]
    with pytest.raises(TideError, match=r"^activations of block 3 are not finite; use a wider dtype"):
        read_tokens(adapter, broken, [3], TIMESTEPS, token_places(3, 64, 0.1, seed=0))

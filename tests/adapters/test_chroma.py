"""Chroma: scale and shift are what the blocks are given in each call, and so differ from timestep to timestep."""

from __future__ import annotations

import torch

from tests.helpers.families import FAMILIES, adapter, pipeline
from tide.activations import Prepared
from tide.adapters import tap
from tide.interpretation.reading import noised_activations
from tide.sae import TIDE, Position
from tide.sae.position import at_step
from tide.training import TrainConfig, build_model

TIMESTEPS = torch.tensor([800.0, 300.0])


def read() -> tuple[TIDE, torch.Tensor, torch.Tensor]:
    own, family = adapter("chroma"), FAMILIES["chroma"]
    latents, noise = torch.randn(2, 2, own.latent_channels, 8, 4, generator=torch.Generator().manual_seed(0))
    sae = build_model(own, 1, TrainConfig(n_latents=64, k=8, modulation_init="adaln")).eval()
    x, conditioning = noised_activations(
        own, sae, Prepared(latents, own.encode_prompts(family.prompts, 20)), noise, TIMESTEPS
    )
    assert conditioning is not None
    return sae, x, conditioning


def test_what_is_read_at_several_timesteps_keeps_the_rows_of_each():
    sae, x, conditioning = read()
    assert conditioning.shape == (2, 2, 4 * adapter("chroma").d_model)
    assert not torch.allclose(*conditioning, atol=1e-3)
    z = [sae.dense(x[i], Position(float(t), at_step(conditioning, i))) for i, t in enumerate(TIMESTEPS)]
    mixed = sae.dense(x[1], Position(float(TIMESTEPS[1]), conditioning[0]))
    assert not torch.allclose(z[1], mixed, atol=1e-3)


def test_the_rows_are_those_of_the_block():
    """Shift and scale of the attention, then of the feed-forward, of the model's own table of rows."""
    own, found = adapter("chroma"), {}
    taps = {block: lambda x, call, block=block: found.update({block: call.conditioning}) for block in range(4)}
    tables: list[torch.Tensor] = []
    network = pipeline("chroma").transformer.distilled_guidance_layer
    hook = network.register_forward_hook(lambda _m, _a, output: tables.append(output))
    latents = torch.randn(2, own.latent_channels, 8, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), tap(own, taps):
        own.denoise(latents, 500, own.encode_prompts(FAMILIES["chroma"].prompts, 20))
    hook.remove()
    for block, first in ((0, 6), (1, 12)):
        rows = tables[0][:, [first, first + 1, first + 3, first + 4]]
        torch.testing.assert_close(found[block], rows.flatten(1))
    for block, first in ((2, 0), (3, 3)):
        torch.testing.assert_close(found[block], tables[0][:, first : first + 2].flatten(1))

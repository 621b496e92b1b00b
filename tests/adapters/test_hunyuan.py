"""What is special of HunyuanDiT: a shift alone, two text encoders, sizes and style, long skips."""

from __future__ import annotations

import pytest
import torch
from diffusers import HunyuanDiT2DModel, HunyuanDiTPipeline

from tests.helpers.families import adapter, draw, pipeline, prepared
from tide.adapters import adapter_for, tap


def test_the_modulation_is_a_shift():
    modulation = adapter("hunyuan").modulation(2)
    assert not modulation.config.has_scale
    scale, shift = modulation(torch.tensor([500.0]), torch.randn(1, 32))
    assert not scale.any()
    assert shift.any()


@pytest.mark.parametrize("with_sizes", [True, False], ids=["up to 1.1", "from 1.2"])
def test_the_conditioning_is_pooled_text_and_sizes(with_sizes):
    pipe = pipeline("hunyuan")
    if not with_sizes:
        config = {**pipe.transformer.config, "use_style_cond_and_image_meta_size": False}
        parts = {**pipe.components, "transformer": HunyuanDiT2DModel.from_config(config)}
        pipe = prepared(HunyuanDiTPipeline(**parts, requires_safety_checker=False))
    embed, seen, calls = pipe.transformer.time_extra_emb, [], []
    handle = embed.register_forward_hook(lambda _m, args, output: seen.append((args, output)))
    with tap(adapter_for(pipe), {1: lambda x, call: calls.append(call)}):
        draw("hunyuan", pipe=pipe, guided=True, n_steps=1)
    handle.remove()
    (((timestep, *_), whole),) = seen
    time = embed.timestep_embedder(embed.time_proj(timestep))
    torch.testing.assert_close(calls[0].conditioning, whole - time, rtol=1e-4, atol=1e-5)
    assert calls[0].timestep.tolist() == timestep.tolist()


@pytest.mark.parametrize("size", [(64, 64), (64, 32), (48, 128)])
def test_positions_are_the_pipelines(size):
    pipe, seen = pipeline("hunyuan"), []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(kwargs["image_rotary_emb"]), with_kwargs=True
    )
    draw("hunyuan", n_steps=1, height=size[0], width=size[1])
    handle.remove()
    latents = torch.zeros(1, 4, size[0] // 8, size[1] // 8)
    found = adapter("hunyuan").call_arguments(latents, torch.ones(1), {})["image_rotary_emb"]
    for own, expected in zip(found, seen[0], strict=True):
        torch.testing.assert_close(own, expected)


def test_an_early_block_is_also_the_input_of_a_late_one():
    """Block 0 of four feeds block 1 and, by a long skip, block 3: an edit changes both."""
    own, seen = adapter("hunyuan"), []
    handle = own.blocks[3].register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(kwargs["skip"]), with_kwargs=True
    )
    with tap(own, {0: lambda x, call: torch.full_like(x, 2.0)}):
        draw("hunyuan", n_steps=1)
    handle.remove()
    assert (seen[0] == 2).all()

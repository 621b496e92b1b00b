"""What is special of SD3: two streams, a last block without text, a second attention, skip-layer guidance."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.helpers.families import adapter, draw, pipeline, prepared
from tests.helpers.families.sd3 import build_sd3
from tide.adapters import adapter_for, tap


def test_blocks_return_text_and_image():
    own, seen = adapter("sd3"), []
    handles = [block.register_forward_hook(lambda _m, _a, output: seen.append(output)) for block in own.blocks]
    tokens = []
    with tap(own, dict.fromkeys(range(own.n_blocks), lambda x, call: tokens.append(x))):
        draw("sd3", n_steps=1)
    for handle in handles:
        handle.remove()
    assert [text is None for text, _ in seen] == [False, False, False, True]
    assert all(x is image for x, (_, image) in zip(tokens, seen, strict=True))


@pytest.mark.parametrize("block", [0, 3])
def test_a_replacement_keeps_the_text(block):
    own, seen = adapter("sd3"), []
    with tap(own, {block: lambda x, call: torch.zeros_like(x)}):
        handle = own.blocks[block].register_forward_hook(lambda _m, _a, output: seen.append(output))
        draw("sd3", n_steps=1)
        handle.remove()
    ((text, image),) = seen
    assert not image.any()
    assert (text is None) == (block == 3)


def test_the_conditioning_is_the_pooled_prompt():
    own = adapter("sd3")
    embed, seen = pipeline("sd3").transformer.time_text_embed, []
    handle = embed.register_forward_hook(lambda _m, args, output: seen.append((*args, output)))
    calls = []
    with tap(own, {0: lambda x, call: calls.append(call)}):
        draw("sd3", guided=True, n_steps=1)
    handle.remove()
    ((timestep, pooled, whole),) = seen
    time = embed.timestep_embedder(embed.time_proj(timestep))
    torch.testing.assert_close(calls[0].conditioning, whole - time)
    assert pooled.shape == (4, 64)


def test_the_third_call_of_skip_layer_guidance_is_not_the_prompts():
    seen = []
    with tap(adapter("sd3"), {2: lambda x, call: seen.append(call.conditional.tolist())}):
        draw("sd3", guided=True, skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)
    both, skipping = [False, False, True, True], [False, False]
    assert seen == [both, both, skipping, both, skipping]  # the pipeline leaves the first step out


def test_a_schedule_shifted_by_the_images_size():
    pipe = prepared(build_sd3(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)))
    draw("sd3", pipe=pipe, height=32, width=32)
    torch.testing.assert_close(adapter_for(pipe).sampling_timesteps(3), pipe.scheduler.timesteps)

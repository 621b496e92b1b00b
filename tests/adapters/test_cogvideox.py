"""What is special of CogVideoX: tokens of two frames, fixed positions, an embedded offset, two schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import FAMILIES, draw, pipeline, prepared
from tests.helpers.families.cogvideox import build_cogvideox
from tide.adapters import adapter_for, tap
from tide.adapters.standins import listened
from tide.interpretation.trajectory import record_trajectory
from tide.training import TrainConfig, build_model

PROMPTS = FAMILIES["cogvideox"].prompts


def test_tokens_of_two_frames():
    """Three frames of latents get one in front, which is drawn and not decoded, by the pipeline and here."""
    pipe = prepared(build_cogvideox(frames_per_token=2))
    own, grids, given = adapter_for(pipe), set(), []
    with tap(own, {0: lambda x, call: grids.add((x.shape, call.grid))}):
        drawn = draw("cogvideox", pipe=pipe)
    assert drawn.shape == (2, 4, 4, 8, 4)
    assert grids == {((2, 16, 32), (2, 4, 2))}
    with listened(pipe.vae, "decode", before=lambda z, *_, **__: given.append(z)):
        clips = own.decode_latents(drawn)
        draw("cogvideox", pipe=pipe, output_type="pt")
    assert clips.shape == (2, 3, 9, 64, 32)
    torch.testing.assert_close(given[0], given[1])
    assert (own.latent_frames(9), own.clip_frames(4)) == (4, 9)
    latents = own.encode_images(clips)
    assert latents.shape == drawn.shape
    assert torch.equal(latents[:, :, 0], latents[:, :, 1])
    text = own.encode_prompts(PROMPTS, 20)
    with torch.no_grad():
        assert own.denoise(latents, 500, text).shape == latents.shape


def test_fixed_positions():
    pipe = prepared(build_cogvideox(rotary=False))
    own, calls = adapter_for(pipe), []
    handle = own.transformer.register_forward_hook(lambda *given: calls.append(given[2:]), with_kwargs=True)
    draw("cogvideox", pipe=pipe)
    handle.remove()
    (kwargs, output) = calls[1]
    with torch.no_grad():
        found = own.denoise(own.latents_of(kwargs, ()), pipe.scheduler.timesteps[1], own.encode_prompts(PROMPTS, 20))
    torch.testing.assert_close(found, own.prediction_of(output[0], ()))


def test_the_offset_is_the_conditioning():
    """Of 1.5 for images to videos; it is the same for all rows, and part of the modulation."""
    parts = build_cogvideox(pictures=4, offset=True).components
    own = adapter_for(prepared(diffusers.CogVideoXImageToVideoPipeline(**parts)))
    block, seen = own.blocks[1], {}
    handles = [
        block.norm1.norm.register_forward_hook(lambda _m, _a, output: seen.update(normed=seen.get("normed", output))),
        block.attn1.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.update(read=kwargs["hidden_states"]), with_kwargs=True
        ),
    ]
    with tap(own, {1: lambda x, call: seen.update(call=call)}):
        generate(own, image=torch.rand(2, 3, 64, 32), guidance_scale=1.0, n_steps=1, num_frames=9)
    for handle in handles:
        handle.remove()
    call = seen["call"]
    assert call.conditioning.shape == (2, 16)
    scale, shift = own.modulation(1)(call.timestep, call.conditioning)
    torch.testing.assert_close(seen["read"], seen["normed"] * (1 + scale[:, None]) + shift[:, None])


def generate(own: Any, **options: Any) -> torch.Tensor:
    defaults = {"n_steps": 2, "guidance_scale": 3.0, "height": 64, "width": 32, "max_sequence_length": 20}
    return own.generate(
        PROMPTS, generators=[torch.Generator().manual_seed(i) for i in range(2)], **{**defaults, **options}
    )


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("CogVideoXImageToVideoPipeline", "image"),
        ("CogVideoXVideoToVideoPipeline", "video"),
        ("CogVideoXFunControlPipeline", "control_video"),
    ],
)
def test_rows_and_tokens_of_pipelines_that_are_given_pictures(name, given):
    parts = build_cogvideox(pictures=0 if given == "video" else 4).components
    own, seen = adapter_for(prepared(getattr(diffusers, name)(**parts))), []
    pictures = torch.rand(2, 3, 64, 32) if given == "image" else [[torch.rand(3, 64, 32)] * 9] * 2
    options = {given: pictures, "negative_prompt": ["a tree"] * 2, **({"num_frames": 9} if given == "image" else {})}
    with tap(own, {0: lambda x, call: seen.append((x.shape, call.conditional.tolist(), call.grid))}):
        latents = generate(own, **options)
    assert seen[0] == ((4, 24, 32), [False, False, True, True], (3, 4, 2))
    assert latents.shape == (2, 4, 3, 8, 4)


def test_the_trajectory_of_a_scheduler_whose_step_takes_more():
    """And of a schedule that starts without any signal."""
    pipe = prepared(build_cogvideox())
    pipe.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    own = adapter_for(pipe)
    sae = build_model(own, 1, TrainConfig(n_latents=32, k=4)).eval()
    found = record_trajectory(own, sae, lambda: draw("cogvideox", pipe=pipe, guided=True))
    assert found.timesteps.tolist() == [999, 666, 332]
    assert float(pipe.scheduler.alphas_cumprod[999]) == 0
    assert found.clean.isfinite().all()
    torch.testing.assert_close(found.clean[-1], found.final, rtol=1e-2, atol=1e-2)


def test_the_attention_reads_and_writes_the_clip_alone():
    """A replacement leaves the text where it was."""
    own, outputs = adapter_for(pipeline("cogvideox")), []
    for tensor in ("output", "attention", "feed_forward"):
        with tap(own, {0: lambda x, call: torch.zeros_like(x)}, tensor):
            handle = own.hook_module(0, tensor).register_forward_hook(lambda _m, _a, output: outputs.append(output))
            draw("cogvideox", n_steps=2)
            handle.remove()
    for pair in (outputs[0], outputs[2]):
        assert not pair[0].any()
        assert pair[1].any()
    assert not outputs[4][:, 20:].any()
    assert outputs[4][:, :20].any()

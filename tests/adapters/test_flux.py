"""What is special of Flux: two kinds of blocks, packed latents, embedded guidance, true guidance in two calls."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.families import FAMILIES, STEPS, adapter, draw, pipeline, prepared
from tests.helpers.families.flux import build_flux
from tide.adapters import adapter_for, tap
from tide.adapters.packing import pack, unpack
from tide.editing import Scale, edit
from tide.errors import TideError
from tide.training import TrainConfig, build_model


def test_blocks_are_numbered_through_both_kinds():
    own = adapter("flux")
    kinds = [type(block).__name__ for block in own.blocks]
    assert kinds == ["FluxTransformerBlock"] * 2 + ["FluxSingleTransformerBlock"] * 2
    assert own.resolve_block("penultimate") == 2
    assert torch.equal(own.modulation(1, next_block=True).linear.weight, own.modulation(2).linear.weight)


def test_single_stream_blocks_have_one_modulation_and_an_output_only():
    own = adapter("flux")
    msa, mlp = (own.modulation(2, chunk).state_dict() for chunk in ("msa", "mlp"))
    assert all(torch.equal(msa[key], mlp[key]) for key in msa)
    for tensor in ("attention", "feed_forward"):
        with pytest.raises(TideError, match=f"block 2 is a single-stream block, which has no {tensor}"):
            own.hook_module(2, tensor)
    with pytest.raises(TideError, match="tensor 'mlp' is unknown"):
        own.hook_module(2, "mlp")


@pytest.mark.parametrize("block", [1, 2])
def test_a_replacement_keeps_the_text(block):
    own, seen = adapter("flux"), []
    hooked = own.blocks[block]
    handle = hooked.register_forward_hook(lambda _m, _a, output: seen.append(output))
    with tap(own, {block: lambda x, call: torch.zeros_like(x)}):
        after = hooked.register_forward_hook(lambda _m, _a, output: seen.append(output))
        draw("flux", n_steps=1)
    handle.remove()
    after.remove()
    (text, image), (kept, replaced) = seen
    assert kept is text
    assert image.any()
    assert not replaced.any()


def test_packing_is_the_pipelines():
    pipe, latents = pipeline("flux"), torch.randn(2, 4, 8, 6)
    packed = pack(latents)
    assert torch.equal(packed, pipe._pack_latents(latents, 2, 4, 8, 6))
    assert torch.equal(unpack(packed, (4, 3)), latents)


def test_generate_unpacks_as_the_pipeline_does():
    pipe, (height, width) = pipeline("flux"), FAMILIES["flux"].size
    packed = pipe(
        list(FAMILIES["flux"].prompts),
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
        height=height,
        width=width,
        max_sequence_length=20,
        output_type="latent",
    ).images
    assert torch.equal(draw("flux", n_steps=2), pipe._unpack_latents(packed, height, width, pipe.vae_scale_factor))
    assert draw("flux", n_steps=1, height=None, width=None).shape == (2, 4, 8, 8)


def test_the_schedule_is_that_of_the_pipelines_own_size():
    draw("flux", height=32, width=32)
    torch.testing.assert_close(adapter("flux").sampling_timesteps(3), pipeline("flux").scheduler.timesteps)
    draw("flux")
    assert not torch.equal(adapter("flux").sampling_timesteps(3), pipeline("flux").scheduler.timesteps)


def test_the_conditioning_is_guidance_and_pooled_prompt():
    own, embed, seen = adapter("flux"), pipeline("flux").transformer.time_text_embed, []
    handle = embed.register_forward_hook(lambda _m, args, output: seen.append((args[0], output)))
    calls = []
    with tap(own, {2: lambda x, call: calls.append(call)}):
        for scale in (1.0, 5.0):
            draw("flux", n_steps=1, guidance_scale=scale)
    handle.remove()
    for (timestep, whole), call in zip(seen, calls, strict=True):
        time = embed.timestep_embedder(embed.time_proj(timestep))
        torch.testing.assert_close(call.conditioning, whole - time, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(calls[0].conditioning, calls[1].conditioning, atol=1e-3)
    assert own.encode_prompts(["a tree"], 20)["guidance"].tolist() == [3.5]


def test_a_model_without_embedded_guidance():
    pipe = prepared(build_flux(guidance_embeds=False))
    own, calls = adapter_for(pipe), []
    with tap(own, {2: lambda x, call: calls.append(call)}):
        draw("flux", pipe=pipe, n_steps=2)
    assert "guidance" not in own.encode_prompts(["a tree"], 20)
    assert len(calls) == 2
    torch.testing.assert_close(own.sampling_timesteps(2), pipe.scheduler.timesteps)


def test_true_guidance_calls_prompt_then_negative_prompt():
    """Told apart by the text, also in a second run and where the embeddings are passed in."""
    pipe, seen = pipeline("flux"), []
    texts = [pipe.encode_prompt(list(FAMILIES["flux"].prompts), max_sequence_length=20) for _ in range(2)]
    names = ("prompt_embeds", "pooled_prompt_embeds")
    given = {f"{sign}{name}": text[i] for text, sign in zip(texts, ("", "negative_"), strict=True)
             for i, name in enumerate(names)}  # fmt: skip
    with tap(adapter("flux"), {2: lambda x, call: seen.append(call.conditional.tolist())}):
        draw("flux", guided=True, n_steps=2)
        draw("flux", n_steps=1)
        pipe(**given, true_cfg_scale=2.0, num_inference_steps=1, height=32, width=16, output_type="latent")
    yes, no = [True, True], [False, False]
    assert seen == [yes, no, yes, no, yes, yes, no]


def test_an_edit_tells_when_it_met_no_row():
    """Embedded guidance makes no unconditional rows; true guidance does."""
    pipe, block = pipeline("flux"), adapter("flux").n_blocks - 2
    sae = build_model(adapter("flux"), block, TrainConfig(n_latents=96, k=12))
    for guided, rows in ((False, 0), (True, 2 * STEPS)):
        with edit(pipe, sae, Scale([1], 2.0), branch="unconditional") as met:
            draw("flux", guided=guided)
        assert met.rows == rows

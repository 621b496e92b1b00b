"""What is special of Sana: a convolution as feed-forward, an instruction before the prompt, a scaled timestep."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, SanaTransformer2DModel, SCMScheduler

from tests.helpers.families import adapter, pipeline
from tide.adapters import tap
from tide.adapters.families.sana import SanaAdapter
from tide.errors import TideError


def transformer(**options) -> SanaTransformer2DModel:
    torch.manual_seed(0)
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=4, **options,
    ).eval().requires_grad_(False)  # fmt: skip


def test_the_convolutions_output_as_tokens():
    own = adapter("sana")
    output = torch.arange(2 * 3 * 4 * 2.0).reshape(2, 3, 4, 2)
    tokens = own.image_tokens(output, "feed_forward")
    assert torch.equal(tokens[1, 5], output[1, :, 2, 1])
    assert torch.equal(own.with_image_tokens(output, tokens, "feed_forward"), output)


def test_prompts_follow_the_pipelines_instruction():
    """Gemma is causal: what stands before a prompt changes its embeddings."""
    own, pipe = adapter("sana"), pipeline("sana")
    with_instruction = own.encode_prompts(["a red cube"], 20)["encoder_hidden_states"]
    alone = pipe.encode_prompt(["a red cube"], do_classifier_free_guidance=False, max_sequence_length=20)[0]
    assert with_instruction.shape == alone.shape
    assert not torch.allclose(with_instruction, alone, atol=1e-3)


def test_embedded_guidance_and_scaled_timestep():
    """The options of Sprint's transformer."""
    model = transformer(guidance_embeds=True, timestep_scale=0.001)
    own = SanaAdapter(SimpleNamespace(transformer=model, _execution_device="cpu"))
    seen = []
    hook = model.time_embed.register_forward_hook(lambda _m, args, output: seen.append((args[0], output)))
    text = {"encoder_hidden_states": torch.randn(2, 5, 32), "guidance": torch.tensor([0.45, 0.1])}
    with torch.no_grad(), tap(own, {1: lambda x, call: seen.append(call)}):
        own.denoise(torch.randn(2, 4, 4, 4), torch.tensor([800.0, 30.0]), text)
    hook.remove()
    (given, (rows, _)), call = seen
    torch.testing.assert_close(given, torch.tensor([0.8, 0.03]))
    torch.testing.assert_close(call.timestep, torch.tensor([800.0, 30.0]))
    scale, shift = own.modulation(1)(call.timestep, call.conditioning)
    table = model.transformer_blocks[1].scale_shift_table
    sixths = rows.reshape(2, 6, -1) + table
    torch.testing.assert_close(shift, sixths[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scale, sixths[:, 1], rtol=1e-4, atol=1e-5)


def test_schedules_that_do_not_fit():
    model = transformer()
    with pytest.raises(TideError, match="SCMScheduler"):
        SanaAdapter(SimpleNamespace(transformer=model, scheduler=SCMScheduler()))
    own = SanaAdapter(SimpleNamespace(transformer=model, scheduler=DDIMScheduler()))
    with pytest.raises(TideError, match="DDIMScheduler is not a flow-matching schedule"):
        own.add_noise(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4), 500)

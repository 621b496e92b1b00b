"""What is special of Lumina 2: one stream of text and image with rows of several lengths, guidance in two calls."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.families import adapter, draw, pipeline
from tide.adapters import tap
from tide.errors import TideError

PROMPTS = ["a red cube, far", "a tree"]


@pytest.mark.parametrize("tensor", ["output", "attention", "feed_forward"])
def test_image_tokens_follow_each_rows_own_text(tensor):
    own, model = adapter("lumina2"), pipeline("lumina2").transformer
    text = own.encode_prompts(PROMPTS, 45)
    first, second = text["encoder_attention_mask"].sum(1).tolist()
    assert first > second
    raw, seen = [], []
    latents = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(0))
    handle = own.hook_module(1, tensor).register_forward_hook(lambda _m, _a, output: raw.append(output))
    with torch.no_grad(), tap(own, {1: lambda x, call: seen.append(x)}, tensor):
        own.denoise(latents, 500, text)
    handle.remove()
    assert raw[0].shape == (2, first + 8, model.config.hidden_size)
    assert torch.equal(seen[0][0], raw[0][0, first : first + 8])
    assert torch.equal(seen[0][1], raw[0][1, second : second + 8])


def test_a_replacement_keeps_text_and_padding():
    own = adapter("lumina2")
    text = own.encode_prompts(PROMPTS, 45)
    first, second = text["encoder_attention_mask"].sum(1).tolist()
    outputs = []
    latents = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(0))
    handle = own.blocks[1].register_forward_hook(lambda _m, _a, output: outputs.append(output))
    with torch.no_grad(), tap(own, {1: lambda x, call: torch.full_like(x, 7.0)}):
        after = own.blocks[1].register_forward_hook(lambda _m, _a, output: outputs.append(output))
        own.denoise(latents, 500, text)
    handle.remove()
    after.remove()
    before, changed = outputs
    assert (changed[0, first : first + 8] == 7).all()
    assert (changed[1, second : second + 8] == 7).all()
    changed[0, first : first + 8], changed[1, second : second + 8] = before[0, first:], before[1, second : second + 8]
    assert torch.equal(changed, before)


def test_tokens_without_a_call():
    with pytest.raises(TideError, match="depends on the call"):
        adapter("lumina2").image_tokens(torch.zeros(1, 4, 48))


def test_no_shift_and_no_conditioning():
    modulation = adapter("lumina2").modulation(0)
    assert not modulation.config.has_shift
    assert not modulation.config.conditioned
    assert not modulation(torch.tensor([500.0]))[1].any()


def test_truncated_guidance_leaves_the_negative_call_out():
    seen = []
    with tap(adapter("lumina2"), {1: lambda x, call: seen.append(bool(call.conditional.all()))}):
        draw("lumina2", guided=True, n_steps=4, cfg_trunc_ratio=0.5)
    assert seen == [True, False, True, False, True, True]

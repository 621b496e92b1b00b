"""What is special of Lumina-Next: prompts of several lengths, positions that depend on size and timestep."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.families import adapter, draw, pipeline
from tide.adapters import tap


def test_prompts_are_padded_to_one_length():
    """Whatever the longest of their batch, so that batches can be joined; the padding changes nothing."""
    own = adapter("lumina_next")
    alone = own.encode_prompts(["a tree"])
    longer = own.encode_prompts(["a tree", "a red cube on the left of a large tree, far"])
    assert alone["encoder_hidden_states"].shape == (1, 256, 32)
    assert longer["encoder_mask"].shape == (2, 256)
    short, latents = own.encode_prompts(["a tree"], 16), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        first, second = (own.denoise(latents, 500, text) for text in (alone, short))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (128, 64)])
def test_positions_are_the_pipelines(size):
    pipe, seen = pipeline("lumina_next"), []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append(kwargs["image_rotary_emb"]), with_kwargs=True
    )
    draw("lumina_next", n_steps=1, height=size[0], width=size[1])
    handle.remove()
    latents = torch.zeros(1, 4, size[0] // 8, size[1] // 8)
    found = adapter("lumina_next").call_arguments(latents, torch.zeros(1), {})["image_rotary_emb"]
    torch.testing.assert_close(found, seen[0])


def test_blocks_are_modulated_by_the_text_that_a_tap_puts_there():
    """Every open tap reads that of the replaced text, also one that was opened before."""
    own, outside, inside = adapter("lumina_next"), [], []
    other = own.encode_prompts(["a large red cube, far"])

    def put(arguments, conditional, timestep):
        return {name: values.expand(2, *values.shape[1:]) for name, values in other.items()}

    with (
        tap(own, {1: lambda x, call: outside.append(call.conditioning)}),
        tap(own, {1: lambda x, call: inside.append(call.conditioning)}, before=put),
    ):
        draw("lumina_next", n_steps=1)
    assert torch.equal(outside[0], inside[0])
    assert torch.equal(outside[0][0], outside[0][1]), "both rows have the one text"


def test_conditional_rows_come_first():
    own, seen = adapter("lumina_next"), []
    with tap(own, {1: lambda x, call: seen.append(call.conditional.tolist())}):
        draw("lumina_next", guided=True, n_steps=1)
    assert seen == [[True, True, False, False]]
    assert not own.modulation(0).config.has_shift

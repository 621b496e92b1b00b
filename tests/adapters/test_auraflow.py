"""What is special of AuraFlow: register tokens before the text, one sequence in its later blocks, its own size."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.families import adapter, pipeline
from tide.adapters import tap

#: Registers and text.
N_TEXT = 8 + 20


@pytest.mark.parametrize("tensor", ["output", "attention", "feed_forward"])
def test_an_edit_in_one_sequence_leaves_registers_and_text(tensor):
    own, outputs = adapter("auraflow"), []
    latents, text = torch.randn(1, 4, 8, 4), own.encode_prompts(["a red cube"], 20)
    for change in (0.0, 1.0):
        with torch.no_grad(), tap(own, {2: lambda x, call, change=change: x + change}, tensor):
            module = own.hook_module(2, tensor)
            handle = module.register_forward_hook(lambda _m, _a, output: outputs.append(output))  # behind the edit
            own.denoise(latents, 500, text)
            handle.remove()
    moved = (outputs[1] - outputs[0]).abs().amax(dim=2)[0]
    assert not moved[:N_TEXT].any()
    assert len(moved) == N_TEXT + 8
    assert (moved[N_TEXT:] - 1).abs().max() < 1e-5


def test_the_size_is_that_of_the_pipelines_call():
    """Which is twice the size that the transformer's config names."""
    own = adapter("auraflow")
    assert own.default_latents == (1024 // own.pixels_per_latent,) * 2
    assert pipeline("auraflow").transformer.config.sample_size == 8

"""What is special of HiDream: padding behind the image, layers of Llama, schedules of its three models."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

from tests.helpers.families import adapter, draw, prepared
from tests.helpers.families.hidream import FAMILY, build_hidream
from tide.adapters import adapter_for, tap


@pytest.mark.parametrize("block", [1, 2], ids=["two streams", "one stream"])
@pytest.mark.parametrize(("size", "padding"), [((16, 4), 4), ((8, 8), 0)])
def test_an_edit_leaves_padding_and_text(size, padding, block):
    """The image stream of what is not a square is as long as the largest image's."""
    own = adapter("hidream")
    latents, text = torch.randn(1, 4, *size), own.encode_prompts(FAMILY.prompts[:1], 20)
    outputs: list[torch.Tensor] = []

    def keep(_module, _args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    for change in (0.0, 1.0):
        with torch.no_grad(), tap(own, {block: lambda x, call, change=change: x + change}):
            handle = own.blocks[block].register_forward_hook(keep)  # behind the edit
            own.denoise(latents, 500, text)
            handle.remove()
    moved = (outputs[1] - outputs[0]).abs().amax(dim=2)[0]
    n_tokens = size[0] * size[1] // 4
    assert (moved[:n_tokens] - 1).abs().max() < 1e-5
    assert not moved[n_tokens:].any()
    assert len(moved) == n_tokens + padding + (0 if block == 1 else 3 * 20)


def test_texts_have_a_row_for_each_prompt():
    """Also the states of Llama's layers, which the transformer takes the other way round."""
    text = adapter("hidream").encode_prompts(FAMILY.prompts, 20)
    assert {name: value.shape[0] for name, value in text.items()} == dict.fromkeys(text, 2)
    assert text["encoder_hidden_states_llama3"].shape == (2, 3, 20, 32)


@pytest.mark.parametrize(
    "scheduler", [FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), FlowMatchLCMScheduler(shift=6.0)]
)
def test_schedules_of_the_distilled_models(scheduler):
    pipe = prepared(build_hidream())
    pipe.scheduler = scheduler
    draw("hidream", pipe=pipe)
    torch.testing.assert_close(adapter_for(pipe).sampling_timesteps(3), pipe.scheduler.timesteps)

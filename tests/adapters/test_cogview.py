"""What is special of CogView 4: noise by size, a feed-forward that runs twice, pictures as channels; and of
CogView3-Plus: a schedule that starts without any signal."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families import adapter, draw, pipeline, prepared
from tests.helpers.families.cogview4 import build_cogview4
from tide.adapters import adapter_for, tap
from tide.errors import TideError


@pytest.mark.parametrize("scheduler", [None, FlowMatch(shift=3.0)], ids=["shifted by size", "shifted"])
@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_noise_is_by_size(size, scheduler):
    """At the same timesteps: as much as the pipeline's scheduler mixes into an image of that size."""
    pipe = pipeline("cogview4") if scheduler is None else prepared(build_cogview4())
    pipe.scheduler = scheduler or pipe.scheduler
    draw("cogview4", pipe=pipe, height=size[0], width=size[1])
    own, latents = adapter_for(pipe), torch.zeros(1, 4, size[0] // 8, size[1] // 8)
    found = [float(own.signal_and_noise(t, latents)[1]) for t in pipe.scheduler.timesteps]
    assert found == pytest.approx(pipe.scheduler.sigmas[:-1].tolist(), rel=1e-5)
    assert float(own.signal_and_noise(0, latents)[1]) == 0


def test_the_schedule_is_known_before_the_run():
    own, scheduler = adapter("cogview4"), pipeline("cogview4").scheduler
    draw("cogview4", height=64, width=64)
    copy = FlowMatch.from_config(scheduler.config)
    copy.set_timesteps(3, **own.schedule_arguments(3))
    torch.testing.assert_close(copy.timesteps, scheduler.timesteps)
    torch.testing.assert_close(copy.sigmas, scheduler.sigmas)


def test_an_edit_of_the_feed_forward_leaves_the_text():
    own, ran, seen = adapter("cogview4"), [], []
    handle = own.blocks[0].ff.register_forward_hook(lambda _m, args, _o: ran.append(args[0].shape[1]))
    text = own.encode_prompts(["a red cube"], 20)
    with torch.no_grad(), tap(own, {0: lambda x, call: seen.append(x) or x + 1}, "feed_forward"):
        own.denoise(torch.randn(1, 4, 8, 4), 500, text)
    handle.remove()
    assert ran == [8, 16]
    assert [x.shape[1] for x in seen] == [8]


@cache
def control() -> Any:
    """Draws from a picture, too, which is given as channels beside the latents."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = build_cogview4()
        config = {name: value for name, value in pipe.transformer.config.items() if not name.startswith("_")}
        transformer = diffusers.CogView4Transformer2DModel(**{**config, "in_channels": 8})
        return prepared(diffusers.CogView4ControlPipeline(**{**pipe.components, "transformer": transformer}))


def test_a_pipeline_with_a_picture():
    """It does not say which of its two calls is the prompt's; the texts do."""
    pipe, seen = control(), []
    own = adapter_for(pipe)
    with tap(own, {1: lambda x, call: seen.append((x.shape, call.conditional.tolist()))}):
        draw("cogview4", pipe=pipe, guided=True, n_steps=2, control_image=torch.rand(1, 3, 64, 32))
    assert seen == [((2, 8, 32), [True] * 2), ((2, 8, 32), [False] * 2)] * 2
    with pytest.raises(TideError, match="is given 4 channels of pictures beside the latents"):
        own.denoise(torch.zeros(1, 4, 8, 4), 500, {})
    with pytest.raises(TideError, match="draws from control_image besides the prompt"):
        draw("cogview4", pipe=pipe)


def test_an_image_is_predicted_where_no_signal_is_left():
    own = adapter("cogview3plus")
    image, noise = torch.randn(1, 4, 8, 4), torch.randn(1, 4, 8, 4)
    assert torch.equal(own.add_noise(image, noise, 999), noise)
    torch.testing.assert_close(own.predicted_clean(-image, noise, 999), image)

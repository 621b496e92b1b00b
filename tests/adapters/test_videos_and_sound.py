"""What is odd in single families of videos and sound."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from tests.helpers.families import FAMILIES, adapter, draw, pipeline, prepared
from tide.activations import collect
from tide.adapters import adapter_for, tap
from tide.editing.previews import watched
from tide.errors import TideError


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def rows_of(name: str, **kwargs: Any) -> list[list[bool]]:
    """The rows of the prompt in each call of a run of two steps."""
    seen: list[list[bool]] = []
    with tap(adapter(name), {0: lambda x, call: seen.append(call.conditional.tolist())}):
        draw(name, n_steps=2, **kwargs)
    return seen


@pytest.mark.parametrize("name", ["hunyuan_video", "mochi"])
def test_a_picture_is_a_clip_of_one_frame(name):
    own = adapter(name)
    latents = own.encode_images(torch.zeros(2, 3, 64, 32))
    assert latents.shape == (2, own.latent_channels, 1, 8, 4)
    (batch,) = collect(own, [(torch.zeros(2, 3, 64, 32), list(FAMILIES[name].prompts))], [0], token_fraction=1.0)
    assert len(batch[0].x) == 2 * 2 * 4 * 2


# -- HunyuanVideo ---------------------------------------------------------------------------------------------------


def test_embedded_guidance_is_given_in_thousands():
    own = adapter("hunyuan_video")
    text = own.encode_prompts(["a house"], 20)
    assert text["guidance"].tolist() == [6.0]
    given: list[torch.Tensor] = []
    handle = own.transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: given.append(kwargs["guidance"]), with_kwargs=True
    )
    with torch.no_grad():
        own.denoise(noise(1, 4, 2, 8, 4), 500, text)
    handle.remove()
    assert given[0].tolist() == [6000.0]


def test_a_pipeline_that_gives_pictures_as_channels():
    """It draws and can be read; noised clips do not have the picture."""
    parts = pipeline("hunyuan_video").components
    transformer = type(parts["transformer"]).from_config({**parts["transformer"].config, "in_channels": 8})
    pipe = prepared(diffusers.HunyuanSkyreelsImageToVideoPipeline(**{**parts, "transformer": transformer}))
    own, seen = adapter_for(pipe), []
    picture = Image.new("RGB", (32, 64))
    with tap(own, {1: lambda x, call: seen.append((x.shape, call.conditional.tolist()))}):
        draw("hunyuan_video", pipe=pipe, guided=True, n_steps=2, image=[picture, picture])
    assert seen == [((2, 16, 32), [True] * 2), ((2, 16, 32), [False] * 2)] * 2
    with pytest.raises(TideError, match="given 4 channels of pictures beside the latents"):
        own.denoise(noise(1, 4, 2, 8, 4), 500, own.encode_prompts(["a house"], 20))
    with pytest.raises(TideError, match="draws from image besides the prompt"):
        draw("hunyuan_video", pipe=pipe)


# -- HunyuanVideo 1.5 -----------------------------------------------------------------------------------------------


def test_the_scale_of_the_guider_is_that_of_the_run():
    pipe = pipeline("hunyuan_video15")
    guider = pipe.guider
    assert rows_of("hunyuan_video15", guided=True) == [[True] * 2, [False] * 2] * 2
    assert rows_of("hunyuan_video15") == [[True] * 2] * 2
    assert pipe.guider is guider


def test_another_guider_is_refused():
    pipe = copy.copy(pipeline("hunyuan_video15"))
    vars(pipe)["guider"] = diffusers.SkipLayerGuidance(skip_layer_guidance_layers=[0])
    with pytest.raises(TideError, match="SkipLayerGuidance makes calls of its own; set pipe"):
        adapter_for(pipe)


# -- Mochi ----------------------------------------------------------------------------------------------------------


def test_a_schedule_that_counts_from_noise_to_the_clip():
    own, shown = adapter("mochi"), []
    with watched(own, lambda step, n_steps, clean: shown.append((step, n_steps)), size=(64, 32), n_images=2):
        draw("mochi")
    assert shown == [(0, 3), (1, 3), (2, 3)]
    assert own.sampling_timesteps(4)[0] == 1000
    with pytest.raises(TideError, match="two steps or more"):
        draw("mochi", n_steps=1)


# -- LTX-2 ----------------------------------------------------------------------------------------------------------


def test_calls_of_other_kinds_of_guidance_are_not_the_prompts():
    more = {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1], "modality_scale": 3.0}
    guided = [[False] * 2 + [True] * 2, [False] * 2, [False] * 2]
    assert rows_of("ltx2", guided=True, **more) == guided * 2
    assert rows_of("ltx2", **more) == [[True] * 2, [False] * 2, [False] * 2] * 2


def test_noised_clips_have_no_sound():
    own = adapter("ltx2")
    text, latents = own.encode_prompts(["a house"], 20), noise(1, 4, 2, 8, 4)
    with torch.no_grad():
        silent = own.denoise(latents, 500, text)
        heard = own.denoise(latents, 500, {**text, "audio_hidden_states": noise(1, 5, 8)})
    assert not torch.allclose(silent, heard, atol=1e-4)


def test_a_run_that_is_watched_draws_the_same():
    """The pipeline copies its scheduler for the sound."""
    from tide.interpretation.trajectory import scheduler_steps

    steps: list[float] = []
    with scheduler_steps(adapter("ltx2"), lambda _, timestep, __: steps.append(timestep)):
        watched_run = draw("ltx2")
    assert len(steps) == 3
    assert torch.equal(watched_run, draw("ltx2"))


# -- Stable Audio ---------------------------------------------------------------------------------------------------


def test_guidance_without_a_negative_prompt():
    """The pipeline makes the rows of zeros itself."""
    assert rows_of("stable_audio", guided=True, negative_prompt=None) == [[False] * 2 + [True] * 2] * 2


def test_the_published_schedule_counts_angles(monkeypatch):
    own = adapter("stable_audio")
    steps = torch.tensor([999.0, 500.0, 10.0])
    torch.testing.assert_close(own.from_scheduler(own.to_scheduler(steps)), steps, rtol=1e-4, atol=1e-2)
    cosine = type("CosineDPMSolverMultistepScheduler", (), {})
    monkeypatch.setattr(own, "pipe", type("Pipe", (), {"scheduler": cosine()})())
    torch.testing.assert_close(own.to_scheduler(steps), steps / 1000)
    torch.testing.assert_close(own.from_scheduler(steps / 1000), steps)


# -- Allegro --------------------------------------------------------------------------------------------------------


def test_a_vae_that_takes_tiles_alone():
    own = adapter("allegro")
    for size in ((64, 64), (20, 64, 64), (24, 64, 32)):
        with pytest.raises(TideError, match="for clips of 24 frames of 64 x 64 pixels or more"):
            own.encode_images(torch.zeros(1, 3, *size))
    with pytest.raises(TideError, match=r"call pipe.vae.enable_tiling\(\)"):
        own.decode_latents(torch.zeros(1, 4, 5, 8, 8))

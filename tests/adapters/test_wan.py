"""What is special of Wan: two transformers, a timestep for each token, pipelines that are given pictures."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import FAMILIES, draw, pipeline, prepared
from tests.helpers.families.wan import build_wan
from tide.adapters import adapter_for, tap
from tide.editing import Steer, edit
from tide.errors import TideError
from tide.interpretation.trajectory import record_trajectory
from tide.training import TrainConfig, build_model

#: Of three steps the first is the high-noise transformer's.
FIRST, OTHERS = [999.0], [857.0, 600.0]


@pytest.fixture(scope="module")
def pair() -> Any:
    torch.manual_seed(0)
    return prepared(build_wan(low_noise=True))


@pytest.mark.parametrize(("component", "steps"), [("transformer", FIRST), ("transformer_2", OTHERS)])
def test_each_of_two_transformers_has_its_own_timesteps(pair, component, steps):
    own, seen = adapter_for(pair, component), []
    with tap(own, {1: lambda x, call: seen.append((float(call.timestep[0]), bool(call.conditional.all())))}):
        draw("wan", pipe=pair, guided=True)
    assert seen == [(t, of_prompt) for t in steps for of_prompt in (True, False)]
    assert own.sampling_timesteps(3).tolist() == steps
    sae = build_model(own, 1, TrainConfig(n_latents=32, k=4)).eval()
    found = record_trajectory(own, sae, lambda: draw("wan", pipe=pair, guided=True)) if steps == OTHERS else None
    assert found is None or found.timesteps.tolist() == steps
    plain, change = draw("wan", pipe=pair), Steer(torch.tensor([50.0]), torch.eye(1, own.d_model))
    with edit(pair, None, change, block=1, component=component):
        assert not torch.allclose(draw("wan", pipe=pair), plain, atol=1e-3)


def test_an_unknown_component_is_named(pair):
    with pytest.raises(TideError, match="the pipeline has no transformer_3; its parts are scheduler, text_encoder"):
        adapter_for(pair, "transformer_3")


def test_a_timestep_for_each_token():
    """What the transformer is given by the 5B model's pipeline, and what it predicts, are those of one timestep."""
    pipe = prepared(build_wan(expand_timesteps=True))
    own, seen, calls = adapter_for(pipe), [], []
    handle = own.transformer.register_forward_hook(
        lambda _m, _args, kwargs, output: calls.append((kwargs, output[0])), with_kwargs=True
    )
    with tap(own, {0: lambda x, call: seen.append(call)}):
        draw("wan", pipe=pipe)
    handle.remove()
    assert calls[0][0]["timestep"].shape == (2, 4)
    assert [call.timestep.tolist() for call in seen] == [[float(t)] * 2 for t in pipe.scheduler.timesteps]
    text = own.encode_prompts(FAMILIES["wan"].prompts, 20)
    with torch.no_grad():
        found = own.denoise(calls[0][0]["hidden_states"], 999, text)
    torch.testing.assert_close(found, calls[0][1])


def test_the_first_frame_at_a_timestep_of_its_own_is_refused():
    parts = build_wan(expand_timesteps=True).components
    pipe = diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=True)
    with pytest.raises(TideError, match=r"^WanImageToVideoPipeline gives this model the first frame at a timestep"):
        adapter_for(pipe)


@pytest.mark.parametrize(
    ("name", "pictures", "given"),
    [
        ("WanVideoToVideoPipeline", 0, "video"),
        ("WanImageToVideoPipeline", 8, "image"),
        ("LucyEditPipeline", 4, "video"),
    ],
)
def test_rows_and_tokens_of_pipelines_that_are_given_pictures(name, pictures, given, monkeypatch):
    cls = getattr(diffusers, name)
    # Which these pipelines use without a look at whether it is installed.
    monkeypatch.setattr(sys.modules[cls.__module__], "ftfy", SimpleNamespace(fix_text=lambda text: text), raising=False)
    parts = build_wan(pictures=pictures).components
    if given == "video" and "Lucy" not in name:
        parts.pop("transformer_2")
    own, seen = adapter_for(prepared(cls(**parts))), []
    picture = torch.rand(1, 3, 64, 32)
    clip = [[picture[0]] * 5] * 2
    options = {given: picture if given == "image" else clip, "negative_prompt": ["a tree"] * 2}
    frames = {} if "VideoToVideo" in name else {"num_frames": 5}
    with tap(own, {0: lambda x, call: seen.append((x.shape, bool(call.conditional.all()), call.grid))}):
        latents = own.generate(
            FAMILIES["wan"].prompts,
            n_steps=3,
            guidance_scale=3.0,
            generators=[torch.Generator().manual_seed(i) for i in range(2)],
            **{"height": 64, "width": 32, "max_sequence_length": 20, **options, **frames},
        )
    assert seen[:2] == [((2, 16, 32), True, (2, 4, 2)), ((2, 16, 32), False, (2, 4, 2))]
    assert latents.shape == (2, 4, 2, 8, 4)
    if not frames:
        with pytest.raises(TideError, match=f"{name} draws as many frames as it is given"):
            _ = own.default_latents
    with pytest.raises(TideError, match=f"{name} draws from {given} besides the prompt"):
        own.generate(["a"], n_steps=2, guidance_scale=1.0, generators=[torch.Generator()])


def test_two_clips_of_a_prompt():
    own, seen = adapter_for(pipeline("wan")), []
    with tap(own, {0: lambda x, call: seen.append(call.conditional.tolist())}):
        own.generate(
            FAMILIES["wan"].prompts,
            n_steps=2,
            guidance_scale=3.0,
            generators=[torch.Generator().manual_seed(i) for i in range(4)],
            **{**FAMILIES["wan"].pixels, "max_sequence_length": 20, "num_videos_per_prompt": 2},
        )
    assert seen == [[True] * 4, [False] * 4] * 2

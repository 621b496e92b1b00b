"""What is special of LTX-Video: a sequence of latents, a schedule by their number, a VAE that is told the noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import FAMILIES, draw, pipeline, prepared
from tests.helpers.families.ltx import build_ltx
from tide.adapters import adapter_for, tap
from tide.adapters.standins import listened
from tide.errors import TideError


def test_latents_are_unpacked_by_the_size_that_is_drawn():
    own, packed = adapter_for(pipeline("ltx")), []
    with listened(own.pipe.scheduler, "step", after=lambda result: packed.append(result[0])):
        drawn = draw("ltx", height=32, width=64, num_frames=9)
    assert drawn.shape == (2, 4, 3, 4, 8)
    assert torch.equal(drawn, own.unpacked(packed[-1], (3, 4, 8)))
    assert torch.equal(own.packed(drawn), packed[-1])
    frame, row, column = 1, 2, 5
    assert torch.equal(packed[-1][:, frame * 32 + row * 8 + column], drawn[:, :, frame, row, column])


def test_a_vae_that_is_told_of_noise_is_told_of_none(monkeypatch):
    """As by the pipeline, unless it is asked to decode at another timestep."""
    pipe = prepared(build_ltx())
    pipe.vae.register_to_config(timestep_conditioning=True)
    own, given = adapter_for(pipe), []

    def decode(z, temb=None, return_dict=True):
        given.append((z, temb))
        clips = torch.zeros(len(z), 3, 5, 64, 32)
        return SimpleNamespace(sample=clips) if return_dict else (clips,)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    own.decode_latents(draw("ltx", pipe=pipe))
    _draw_clips(own)
    (z, temb), (expected, its_temb) = given
    torch.testing.assert_close(z, expected)
    assert temb.tolist() == its_temb.tolist() == [0, 0]


def _draw_clips(own: Any) -> None:
    family = FAMILIES["ltx"]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    own.run_pipeline(family.prompts, 3, 1.0, generators, **family.pixels, **family.arguments, output_type="pt")


@pytest.mark.parametrize("name", ["LTXImageToVideoPipeline", "LTXConditionPipeline", "LTXI2VLongMultiPromptPipeline"])
def test_pipelines_that_are_given_frames_are_refused(name):
    pipe = getattr(diffusers, name)(**build_ltx().components)
    with pytest.raises(TideError, match=rf"^{name} is not supported \(.*\); use diffusers.LTXPipeline.from_pipe"):
        adapter_for(pipe)
    assert adapter_for(diffusers.LTXPipeline.from_pipe(pipe)).family == "ltx"


def test_two_clips_of_a_prompt():
    own, seen = adapter_for(pipeline("ltx")), []
    with tap(own, {0: lambda x, call: seen.append(call.conditional.tolist())}):
        own.generate(
            FAMILIES["ltx"].prompts,
            n_steps=2,
            guidance_scale=3.0,
            generators=[torch.Generator().manual_seed(i) for i in range(4)],
            **{**FAMILIES["ltx"].pixels, "max_sequence_length": 20, "num_videos_per_prompt": 2},
        )
    assert seen == [[False] * 4 + [True] * 4] * 2

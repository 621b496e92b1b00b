"""A prompt before and after edits, in one call."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.edit_samples import N
from tide.editing import Beside, Erase, Scale, Steer, Strength, draw_edits, draw_latents, edit
from tide.errors import TideError
from tide.pictures import to_image

RUN = {"n_steps": 3, "guidance_scale": 2.0, "seed": 4}


@pytest.mark.filterwarnings("ignore:edit '0'. the pipeline ran and nothing was edited")
def test_before_and_after(adapter, sae):
    """The images that the pipeline draws without and within :func:`edit`, by the names of the edits."""
    top = Erase(top_k=8)
    before, after = draw_edits(adapter, sae, "a red house", {f"{s:g}": Strength(top, s) for s in (0, 1)}, **RUN)
    plain = draw_latents(adapter, "a red house", **RUN)
    with edit(adapter.pipe, sae, top):
        edited = draw_latents(adapter, "a red house", **RUN)
    pictures = [to_image(adapter.decode_latents(latents)[0]) for latents in (plain, edited)]
    assert list(after) == ["0", "1"]
    assert before == pictures[0] == after["0"]
    assert after["1"] == pictures[1] != before


def test_edits_of_raw_activations(adapter, sae):
    """At the block of the SAE, whose latents may draw the mask."""
    steer = Steer(torch.zeros(1), torch.ones(1, 192))
    _, after = draw_edits(
        adapter, sae, "a red house", {"steer": steer, "beside": Beside(adapter, "a blue house")}, **RUN
    )
    for name, change in (("steer", steer), ("beside", Beside(adapter, "a blue house"))):
        with edit(adapter.pipe, None, change, block=sae.config.block):
            edited = draw_latents(adapter, "a red house", **RUN)
        assert after[name] == to_image(adapter.decode_latents(edited)[0])


def test_tokens_steps_branch_and_norm_reach_the_edit(adapter, sae):
    """Each confines or changes the edit; masks may be given by name."""
    top = {"all": Erase(top_k=8), "half": Erase(top_k=8)}
    half = torch.arange(64) < 32
    masks = {"all": torch.ones(64, dtype=torch.bool), "half": half}
    before, by_name = draw_edits(adapter, sae, "a red house", top, tokens=masks, **RUN)
    _, one = draw_edits(adapter, sae, "a red house", {"half": top["half"]}, tokens=half, **RUN)
    assert one["half"] == by_name["half"]
    images = [before, *by_name.values()]
    for options in ({"steps": (0.5, 1.0)}, {"branch": "both"}, {"renormalise": True}):
        images.append(draw_edits(adapter, sae, "a red house", {"all": top["all"]}, **RUN, **options)[1]["all"])
    different = {np.asarray(image).tobytes() for image in images}
    assert len(different) == len(images)


@pytest.mark.parametrize(
    ("edits", "options", "message"),
    [
        ({"a": Scale([N], 2.0)}, {}, f"feature {N} does not exist"),
        ({}, {"steps": (0.9, 1.0)}, "steps 0.9 1 holds none of the 3 sampling steps; give fractions 0.33"),
        ({}, {"n_steps": 0}, "0 sampling steps asked for"),
        (
            {"a": Erase([1])},
            {"tokens": {"b": torch.ones(64, dtype=torch.bool)}},
            "tokens holds no mask for the edit 'a'",
        ),
        ({}, {"size": (65, 64)}, "65 x 64 pixels does not divide into tokens"),
        (
            {"a": Erase([1])},
            {"guidance_scale": 1.0, "branch": "unconditional"},
            "this pipeline's calls have no unconditional rows at these steps; choose another branch",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:the pipeline ran and nothing was edited")
def test_what_does_not_fit(adapter, sae, edits, options, message):
    with pytest.raises(TideError, match=message):
        draw_edits(adapter, sae, "a red house", edits, **{**RUN, **options})


def test_an_image_that_is_not_finite(adapter, sae):
    with pytest.raises(TideError, match="what the pipeline draws is not finite; lower the edit's strength"):
        draw_edits(adapter, sae, "a red house", {"a": Scale(range(N), 3e38)}, **RUN)

"""Pictures of the masks that latents draw, over what the steps predict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler

from tests.helpers.edit_samples import N, draw
from tide.adapters import adapter_for
from tide.editing import Scale, Where, draw_edits, edit, overlays, watched
from tide.editing.where_pictures import spread
from tide.errors import TideError
from tide.pictures import mask_overlay, to_image
from tide.strips import shown

STEPS = 4
CHANGE = Scale(range(N), 2.0)


@pytest.fixture(scope="module")
def where(sae) -> Where:
    return Where.of_features(sae, (3, 20, 41), 0.5)


def test_each_step_has_its_mask_over_what_it_predicts(alpha, sae, where):
    """Two images at a time, and not a bit of them is changed."""
    own, clean = adapter_for(alpha), []
    prompts = ("a red cube", "a house")
    with (
        edit(alpha, sae, CHANGE, tokens=where) as met,
        watched(own, lambda step, n_steps, latents: clean.append(latents), n_images=2),
        overlays(own, met, n_images=2) as steps,
    ):
        seen = draw(alpha, prompts, n_steps=STEPS)
    with edit(alpha, sae, CHANGE, tokens=where):
        assert torch.equal(draw(alpha, prompts, n_steps=STEPS), seen)
    assert [(each.step, each.n_steps) for each in steps] == [(i, STEPS) for i in range(STEPS)]
    for each, (_, mask), latents in zip(steps, met.masks, clean, strict=True):
        assert each.mask is not None
        assert torch.equal(each.mask, mask)
        for picture, own_mask, own_latents in zip(each.pictures, mask, latents, strict=True):
            image = np.asarray(shown(to_image(own.decode_latents(own_latents[None])[0])))
            assert np.array_equal(np.asarray(picture), mask_overlay(image, own_mask.view(8, 8).numpy()))
    assert 0 < sum(int(mask.sum()) for _, mask in met.masks) < 2 * 64 * STEPS
    assert steps[1].label == f"step 2 of 4: {int(met.masks[1][1].sum())} tokens"


def test_steps_that_are_not_edited_are_shown_whole(alpha, sae, where):
    own = adapter_for(alpha)
    with edit(alpha, sae, CHANGE, tokens=where, steps=(0.25, 0.75)) as met, overlays(own, met) as steps:
        draw(alpha, n_steps=STEPS)
    assert [each.mask is None for each in steps] == [True, False, False, True]
    assert steps[3].label == "step 4 of 4: not edited"


def test_images_that_are_not_square(alpha, sae, where):
    own = adapter_for(alpha)
    with edit(alpha, sae, CHANGE, tokens=where) as met, overlays(own, met, size=(32, 64), most=1) as steps:
        draw(alpha, n_steps=2, height=32, width=64)
    (last,) = steps
    assert (last.step, last.pictures[0].size) == (1, (256, 128))
    assert met.masks[1][1].shape == (1, 32)


def test_around_each_drawn_edit(alpha, sae, where):
    own, found = adapter_for(alpha), {}

    def around(name, met):
        found[name] = overlays(own, met, most=2)
        return found[name]

    edits = {"weak": Scale([3], 2.0), "strong": CHANGE}
    run = {"n_steps": 3, "guidance_scale": 1.0}
    _, after = draw_edits(own, sae, "a red cube", edits, tokens=where, around=around, on_met=lambda *_: None, **run)
    _, plainly = draw_edits(own, sae, "a red cube", edits, tokens=where, on_met=lambda *_: None, **run)
    assert list(found) == ["weak", "strong"]
    assert all(after[name].tobytes() == plainly[name].tobytes() for name in edits)


@pytest.mark.parametrize(
    ("n", "most", "expected"),
    [(20, 8, [0, 3, 5, 8, 11, 14, 16, 19]), (3, 8, [0, 1, 2]), (5, 1, [4]), (1, 4, [0]), (2, 2, [0, 1])],
)
def test_steps_are_spread_evenly(n, most, expected):
    assert spread(n, most) == expected


def test_what_cannot_be_shown(alpha, sae, where):
    own = adapter_for(alpha)
    with edit(alpha, sae, CHANGE) as met, pytest.raises(TideError, match=r"^this edit's tokens are the same at every"):
        with overlays(own, met):
            pass
    with edit(alpha, sae, CHANGE, tokens=where) as met, pytest.raises(TideError, match=r"^most = 0 must be at least"):
        with overlays(own, met, most=0):
            pass


def test_a_step_of_two_calls_shows_the_mask_of_the_first(alpha, sae, where):
    """And none once the edit is over, whose last call is the second of a step."""
    scheduler = HeunDiscreteScheduler.from_config(alpha.scheduler.config)
    pipe = type(alpha)(**{**alpha.components, "scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    own = adapter_for(pipe)
    with edit(pipe, sae, CHANGE, tokens=where, steps=(0.0, 0.5)) as met, overlays(own, met) as steps:
        draw(pipe, n_steps=4)
    masks = [mask for _, mask in met.masks]
    assert len(masks) == 4
    assert [each.mask is None for each in steps] == [False, False, True, True]
    assert all(each.mask is mask for each, mask in zip(steps[:2], masks[::2], strict=True))

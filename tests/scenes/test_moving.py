"""Moving scenes: where the object is in every frame, what captions and masks say of it, and what the judge sees."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tide.errors import TideError
from tide.scenes import LEVEL_OF, Scene, concept_masks, load_judge, render, scenes
from tide.scenes.moving import (
    MOST_FRAMES,
    MOTIONS,
    MOVING_VOCABULARY,
    MovingScene,
    clip_masks,
    clips_of,
    directions,
    moving_prompts,
    moving_scenes,
    render_clip,
    travelled,
)
from tide.scenes.pipeline import build_tokenizer
from tide.scenes.render import place_of
from tide.scenes.scene import SHORT_TEMPLATES, TEMPLATES, VOCABULARY

EVERY = list(moving_scenes("test", 30, seed=4))


def centre(mask: np.ndarray) -> float:
    return float(np.nonzero(mask)[1].mean())


def test_a_clip_is_what_its_caption_says():
    cube = MovingScene(Scene("cube", "red", "far", "with", "grass", seed=2), "moving left quickly")
    assert cube.direction == "left"
    assert cube.caption() == ("a plain new red cube moving left quickly, facing left, far, on grass, with a shadow")
    assert cube.caption(SHORT_TEMPLATES[0], speed=False) == "a red cube moving left"
    clip = render_clip(cube)
    assert clip.frames.shape == (8, 64, 64, 3)
    assert clip.frames.dtype == np.float32
    assert clip.regions.shape == (8, 64, 64)
    assert {mask.shape for mask in clip.masks.values()} == {(8, 64, 64)}
    places = [centre(mask) for mask in clip.masks["cube"]]
    np.testing.assert_allclose(np.diff(places), -36 / 7, atol=0.7)  # the edge of the image cuts a little off
    shadows = [centre(mask) for mask in clip.masks["shadow"]]
    assert np.corrcoef(places, shadows)[0, 1] > 0.99


def test_every_frame_is_a_still_rendering_and_a_still_clip_the_still_scene():
    for item in EVERY[:10]:
        clip = render_clip(item, n_frames=5)
        third = render(item.scene, item.shifts(5)[2])
        np.testing.assert_array_equal(clip.frames[2], third.image)
        for concept, mask in third.masks.items():
            np.testing.assert_array_equal(clip.masks[concept][2], mask)
        still = render_clip(MovingScene(item.scene, "standing still"), n_frames=3)
        assert (still.frames == render(item.scene).image).all()


def test_objects_stay_in_the_image_and_face_where_they_go():
    for item in moving_scenes("train", 60):
        assert item.direction in ("still", item.scene.orientation)
        for shift in item.shifts():
            assert 8 < place_of(item.scene) + shift < 56


def test_ground_and_sky_stay_where_they_are():
    """Pixels that show no object and no shadow in two frames are the same bits, but for edges."""
    for item in (each for each in EVERY if each.scene.style != "sketched"):
        clip = render_clip(item)
        background = (clip.regions < 2)[[0, -1]].all(0)
        differs = np.abs(clip.frames[0] - clip.frames[-1]).max(-1) > 0
        assert (differs & background).sum() < 0.1 * background.sum()


def test_the_same_seed_gives_the_same_clips():
    first, again = (list(moving_scenes("train", 12, seed=3)) for _ in range(2))
    assert first == again
    assert first == list(moving_scenes("train", 20, seed=3))[:12]
    assert first != list(moving_scenes("train", 12, seed=5))
    turned = [replace(scene, orientation="left") for scene in scenes("train", 12, seed=3)]
    assert [replace(item.scene, orientation="left") for item in first] == turned
    assert torch.equal(clips_of(first[:2]), clips_of(again[:2]))
    assert moving_prompts("dev", 4, 1) == moving_prompts("dev", 4, 1)
    motions = [item.motion for item in moving_scenes("train", 50)]
    assert {motions.count(motion) for motion in MOTIONS} == {10}


def test_captions_have_tokens():
    """Every word has one, and those of still scenes keep theirs."""
    tokenizer = build_tokenizer(MOVING_VOCABULARY)
    assert MOVING_VOCABULARY[: len(VOCABULARY)] == VOCABULARY
    for item in EVERY:
        for template in (*TEMPLATES, *SHORT_TEMPLATES):
            ids = tokenizer(item.caption(template)).input_ids
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= tokenizer.model_max_length


def test_masks_over_frames_are_those_of_still_scenes():
    masks = clip_masks(EVERY[:6], (5, 8, 8), n_frames=5)
    assert masks.keys() == LEVEL_OF.keys()
    for concept, mask in masks.items():
        assert mask.shape == (6, 5 * 64)
        assert mask.dtype == torch.bool
        still = [i for i, item in enumerate(EVERY[:6]) if item.direction == "still"]
        wanted = concept_masks([EVERY[i].scene for i in still], (8, 8))[concept]
        assert still
        assert torch.equal(mask.unflatten(1, (5, 64))[still, 3], wanted)
    cone = MovingScene(Scene("cone", "blue", "near", "without", "sand"), "standing still")
    shadows = clip_masks([cone], (2, 4, 4), n_frames=2)
    assert not shadows["shadow"].any()
    assert shadows["cone"].any()


def test_masks_of_latents_that_stand_for_several_frames():
    """The first alone, then four at a time, as VAEs of videos compress them."""
    frames = clip_masks(EVERY[:4], (9, 8, 8), n_frames=9)["near"].unflatten(1, (9, 64))
    shared = clip_masks(EVERY[:4], (3, 8, 8), n_frames=9)["near"].unflatten(1, (3, 64))
    assert torch.equal(shared[:, 0], frames[:, 0])
    assert not (shared[:, 1] & ~frames[:, 1:5].any(1)).any()
    assert (shared[:, 2] | ~frames[:, 5:].all(1)).all()


def test_clips_as_tensors():
    clips = clips_of(EVERY[:2], n_frames=3)
    assert clips.shape == (2, 3, 3, 64, 64)
    frame = render_clip(EVERY[1], 3).frames[2]
    np.testing.assert_allclose(clips[1, :, 2].permute(1, 2, 0).numpy(), frame * 2 - 1, atol=1e-6)


def test_the_judge_sees_where_the_object_moves():
    clips = clips_of(EVERY)
    judge = load_judge()
    assert directions(judge, clips) == [item.direction for item in EVERY]
    wanted = torch.tensor([MOTIONS[item.motion] for item in EVERY])
    assert (travelled(judge, clips) - wanted).abs().max() < 10  # an object at the edge is cut off
    empty = torch.from_numpy(render(EVERY[0].scene, shift=-200.0).image).permute(2, 0, 1) * 2 - 1
    assert directions(judge, empty[None, :, None].expand(-1, -1, 4, -1, -1)) == ["unseen"]


@pytest.mark.parametrize(
    ("mistaken", "message"),
    [
        (lambda: MovingScene(EVERY[0].scene, "flying"), "motion 'flying' is unknown; use one of moving left slowly, "),
        (lambda: render_clip(EVERY[0], 0), f"a clip of 0 frames is asked for; give from 1 to {MOST_FRAMES}"),
        (lambda: clips_of(EVERY[:1], MOST_FRAMES + 1), "a clip of 1025 frames is asked for"),
        (lambda: clips_of([]), "there are no clips to render; give at least one"),
        (lambda: clip_masks(EVERY[:1], (8, 8)), r"the grid \(8, 8\) has 2 numbers; give frames, rows and columns"),
        (lambda: clip_masks(EVERY[:1], (8, 7, 8)), "does not divide into 7 x 8 tokens"),
        (lambda: list(moving_scenes("train", 10**7)), "10000000 scenes are asked for"),
    ],
)
def test_mistakes(mistaken, message):
    with pytest.raises(TideError, match=message):
        mistaken()

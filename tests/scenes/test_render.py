"""Renders and their masks: the masks say where the pixels are what they are called."""

from __future__ import annotations

from importlib import import_module
from itertools import product

import numpy as np
import pytest
import torch

from tide.editing import token_mask
from tide.errors import TideError
from tide.scenes import ATTRIBUTES, CONCEPTS, LEVEL_OF, Scene, combinations, concept_masks, images_of, render, scenes

drawing = import_module("tide.scenes.render")  # tide.scenes.render as an attribute is the function
EVERY = [s for split in ("train", "dev", "test") for s in scenes(split, 60, seed=5)]
#: Pencil lines are drawn along edges, beyond what they bound.
UNSKETCHED = [s for s in EVERY if s.style != "sketched"]
PARTS = {"house": {"door", "roof", "window"}, "tree": {"trunk", "crown"}}


def without_object(scene: Scene, monkeypatch) -> np.ndarray:
    """The same scene with nothing drawn where the object stands: sky, ground and shadow alone."""

    def nothing(canvas, pose, colour):
        canvas.visible["object"] = np.zeros_like(drawing.X_GRID)

    with monkeypatch.context() as patch:
        patch.setitem(drawing._DRAW, scene.cls, nothing)
        return render(scene).image


def test_the_same_scene_gives_the_same_bits():
    for scene in EVERY[:10]:
        first, second = render(scene), render(scene)
        assert np.array_equal(first.image, second.image)
        assert first.masks.keys() == second.masks.keys()
        assert all(np.array_equal(first.masks[name], second.masks[name]) for name in first.masks)


def test_scenes_of_one_caption_differ():
    first, second = (Scene("cube", "red", "far", "with", "snow", seed=seed) for seed in (0, 1))
    assert np.abs(render(first).image - render(second).image).max() > 0.1


def test_images():
    for scene in EVERY:
        image = render(scene).image
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1
    batch = images_of(EVERY[:4])
    assert batch.shape == (4, 3, 64, 64)
    assert batch.dtype == torch.float32
    np.testing.assert_allclose(batch[2].permute(1, 2, 0).numpy(), render(EVERY[2]).image * 2 - 1, atol=1e-6)


def test_masks_that_are_there():
    for scene in EVERY:
        masks = render(scene).masks
        assert {scene[name] for name in ATTRIBUTES if name != "shadow"} <= masks.keys() <= LEVEL_OF.keys()
        assert ("shadow" in masks) == (scene.shadow == "with")
        for name in CONCEPTS["part"]:
            assert (name in masks) == (name in PARTS.get(scene.cls, ())), (scene, name)
        for name, values in ATTRIBUTES.items():
            assert name == "shadow" or len(masks.keys() & set(values)) == 1
        for mask in masks.values():
            assert mask.shape == (64, 64)
            assert mask.dtype == bool
            assert mask.any()


def test_masks_do_not_contradict_each_other():
    for scene in EVERY:
        masks = render(scene).masks
        body = masks[scene.cls]
        assert np.array_equal(body, masks[scene.colour])
        assert np.array_equal(body, masks[scene.depth])
        assert np.array_equal(body, masks[scene.age])
        assert np.array_equal(body, masks[scene.orientation])
        assert masks["sketched"].all() if scene.style == "sketched" else np.array_equal(body, masks[scene.style])
        assert not (body & masks[scene.ground]).any()
        if "shadow" in masks:
            assert not (body & masks["shadow"]).any()
        parts = [masks[name] for name in PARTS.get(scene.cls, ())]
        assert all(not (part & ~body).any() for part in parts)
        assert np.sum(parts, axis=0).max(initial=0) <= 1


def test_the_objects_mask_is_where_the_image_is_not_its_background(monkeypatch):
    """What the object covers differs from the scene without it, and what it does not touch is the same bits."""
    for scene in UNSKETCHED:
        drawn = render(scene)
        difference = np.abs(drawn.image - without_object(scene, monkeypatch)).max(-1)
        body = drawn.masks[scene.cls]
        assert (difference[body] > 0.02).mean() > 0.97, scene
        # Pixels outside that differ are the anti-aliased edge: less than half covered, half a pixel wide, and wider
        # beyond a corner, most at the cone's apex.
        edge = (difference > 0) & ~body
        reach = 3 if scene.cls == "cone" else 2
        grown = np.zeros_like(body)
        for dy, dx in product(range(-reach, reach + 1), repeat=2):
            grown |= np.roll(body, (dy, dx), (0, 1))
        assert not (edge & ~grown).any(), scene


def test_faces_that_share_a_pixel_leave_no_hole():
    """Along a seam no face covers half of a pixel, the object all of it."""
    for scene in (s for s in EVERY if s.cls != "tree"):
        body = render(scene).masks[scene.cls]
        hole = ~body
        for axis, step in product((0, 1), (-1, 1)):
            hole &= np.roll(body, step, axis)
        assert not hole.any(), scene


def test_the_shadow_darkens_the_ground():
    for scene in (s for s in UNSKETCHED if s.shadow == "with"):
        drawn, lit = render(scene), render(scene.changed("shadow", "without"))
        shade = drawn.masks["shadow"]
        assert (drawn.image[shade] < lit.image[shade]).all()
        far_from_it = lit.masks[scene.ground] & ~shade & (np.abs(drawn.image - lit.image).max(-1) == 0)
        assert far_from_it.any()


def test_attributes_look_like_what_they_are_called():
    for scene in UNSKETCHED:
        drawn = render(scene)
        mean = drawn.image[drawn.masks[scene.ground]].mean(0)
        nearest = min(drawing.GROUND, key=lambda name: np.abs(mean - drawing.GROUND[name]).sum())
        assert nearest == scene.ground
        height = np.ptp(np.nonzero(drawn.masks[scene.cls])[0])
        assert (height > 30) == (scene.depth == "near"), (scene, height)


@pytest.mark.parametrize("cls", ["sphere", "cube", "cone"])
def test_the_colour_covers_the_body(cls):
    """Shading changes brightness and keeps the order of the channels of a pure colour."""
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        drawn = render(Scene(cls, colour, "near", "with", "sand"))
        assert (drawn.image[drawn.masks[cls]].argmax(-1) == channel).mean() > 0.95


def test_one_attribute_changed_leaves_the_rest_in_place():
    """The pose depends on seed and depth alone, so that two values of an attribute can be compared pixel by pixel."""
    for scene in combinations("test")[:8]:
        other = scene.changed("colour", "blue" if scene.colour != "blue" else "red")
        first, second = render(scene), render(other)
        assert np.array_equal(first.masks[scene.cls], second.masks[scene.cls])
        outside = ~first.masks[scene.cls] & (np.abs(first.image - second.image).max(-1) == 0)
        assert outside.sum() > 2000


def test_regions_agree_with_the_masks():
    for scene in EVERY:
        drawn = render(scene)
        region = {name: drawn.regions == i for i, name in enumerate(drawing.REGIONS)}
        assert np.array_equal(region["object"], drawn.masks[scene.cls])
        assert np.array_equal(region["shadow"], drawn.masks.get("shadow", np.zeros((64, 64), bool)))
        assert not (region["ground"] & ~drawn.masks[scene.ground]).any()
        assert region["sky"][0].all() or (region["sky"] | region["object"])[0].all()
        assert not region["sky"][-1].any()


@pytest.mark.parametrize("cls", ATTRIBUTES["class"])
@pytest.mark.parametrize("depth", ATTRIBUTES["depth"])
def test_the_style_and_the_age_change_the_object_alone_or_everything(cls, depth):
    """Gilding and wear keep to the object and change a good part of it; a sketch changes the whole image."""
    plain = Scene(cls, "purple", depth, "with", "grass", seed=3)
    before = render(plain)
    body = before.masks[cls]
    for attribute, value in (("style", "ornate"), ("age", "old")):
        after = render(plain.changed(attribute, value))
        change = np.abs(after.image - before.image).max(-1)
        assert np.array_equal(after.masks[cls], body)
        assert (change[body] > 0.05).mean() > 0.25, value
        assert change[~body].max() < 0.5, value  # the anti-aliased edge
        assert (change[~body] > 0).mean() < 0.05, value
    sketched = render(plain.changed("style", "sketched"))
    assert (np.abs(sketched.image - before.image).max(-1) > 0.02).mean() > 0.9


def test_parts_keep_their_masks_under_wear_and_gilding():
    house = Scene("house", "red", "near", "without", "sand", seed=2)
    for other in (house.changed("age", "old"), house.changed("style", "ornate")):
        for part in ("door", "roof", "window"):
            assert np.array_equal(render(other).masks[part], render(house).masks[part])


@pytest.mark.parametrize("cls", ["cone", "tree", "cube", "house"])
def test_the_orientation_mirrors_the_shape(cls):
    """Every shape but the sphere's outline: there it is the spot."""
    left = Scene(cls, "blue", "near", "without", "snow", seed=8)
    right = left.changed("orientation", "right")
    masks = [render(scene).masks[cls] for scene in (left, right)]
    columns = np.nonzero(masks[0].any(0))[0]
    mirrored = masks[0][:, ::-1]
    shift = np.nonzero(masks[1].any(0))[0][0] - np.nonzero(mirrored.any(0))[0][0]
    aligned = np.roll(mirrored, shift, 1)
    assert (aligned ^ masks[1]).sum() < 0.08 * masks[1].sum()
    assert (masks[0] ^ masks[1]).sum() > 0.04 * masks[1].sum(), columns


def test_the_spot_of_a_sphere_says_where_it_faces():
    for orientation, sign in (("left", -1), ("right", 1)):
        drawn = render(Scene("sphere", "white", "near", "without", "grass", orientation=orientation, seed=1))
        body = drawn.masks["sphere"]
        dark = body & (drawn.image.max(-1) < 0.35)
        centre, spot = np.nonzero(body)[1].mean(), np.nonzero(dark)[1].mean()
        assert sign * (spot - centre) > 4


def test_concept_masks_are_the_renders_masks_over_tokens():
    chosen = EVERY[:12]
    masks = concept_masks(chosen, (8, 8))
    assert masks.keys() == LEVEL_OF.keys()
    for name, mask in masks.items():
        assert mask.shape == (12, 64)
        assert mask.dtype == torch.bool
        for i, scene in enumerate(chosen):
            pixels = render(scene).masks.get(name)
            expected = torch.zeros(64, dtype=torch.bool)
            if pixels is not None:
                expected = token_mask(torch.from_numpy(pixels), (8, 8))
            assert torch.equal(mask[i], expected)


def test_a_grid_that_does_not_divide_the_image():
    with pytest.raises(TideError, match="does not divide into 7 x 8 tokens"):
        concept_masks(EVERY[:1], (7, 8))

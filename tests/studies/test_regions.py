"""Where an edit may change the image, and how far it went elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

from tide.scenes.render import REGIONS, render
from tide.scenes.scene import ATTRIBUTES, Scene
from tide.studies.regions import MARGIN, REGIONS_OF, edited_region, outside_distance
from tide.studies.tasks import EditTask

SCENE = Scene("house", "red", "near", "with", "grass", seed=2)


def task(attribute: str, target: str, scene: Scene = SCENE) -> EditTask:
    return EditTask(scene, scene.caption(), 0, attribute, target)


def seen(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = render(scene)
    return torch.from_numpy(drawn.image).permute(2, 0, 1) * 2 - 1, torch.from_numpy(drawn.regions)


def test_every_attribute_has_its_regions():
    assert REGIONS_OF.keys() == ATTRIBUTES.keys()
    assert all(set(names) <= set(REGIONS) for names in REGIONS_OF.values())


@pytest.mark.parametrize(
    ("attribute", "target"),
    [("colour", "blue"), ("class", "tree"), ("depth", "far"), ("shadow", "without"), ("ground", "snow"),
     ("style", "ornate"), ("age", "old"), ("orientation", "right")],
)  # fmt: skip
def test_a_perfect_edit_moves_nothing_outside(attribute, target):
    """The renderer changes what the attribute is of, and nothing else."""
    before, after = seen(SCENE), seen(SCENE.changed(attribute, target))
    away = outside_distance(task(attribute, target), (before[0], after[0]), (before[1], after[1]))
    assert away < 0.5, attribute


def test_a_change_elsewhere_is_seen():
    image, regions = seen(SCENE)
    other = image.clone()
    other[:, :10] += 0.2  # the sky
    away = outside_distance(task("colour", "blue"), (image, other), (regions, regions))
    n_outside = int((~edited_region(task("colour", "blue"), regions, regions)).sum())
    assert away == pytest.approx(0.2 * 127.5 * 640 / n_outside, rel=1e-4)


def test_the_region_is_of_both_images_and_a_margin():
    before, after = torch.zeros(2, 20, 20, dtype=torch.long).unbind(0)
    before[5, 5], after[12, 15] = REGIONS.index("object"), REGIONS.index("object")
    region = edited_region(task("age", "old"), before, after)
    assert region.sum() == 2 * (2 * MARGIN + 1) ** 2
    assert region[5 - MARGIN, 5 + MARGIN]
    assert region[12, 15]
    assert not region[5, 5 + MARGIN + 1]


def test_a_style_of_the_whole_image_has_no_outside():
    image, regions = seen(SCENE)
    assert math.isnan(outside_distance(task("style", "sketched"), (image, -image), (regions, regions)))

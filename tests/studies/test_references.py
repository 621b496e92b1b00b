"""Reference images of an edit: training scenes that show the target in the place of the source."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.scenes.pipeline import DATA, load_pipeline
from tide.scenes.scene import ATTRIBUTES, Scene
from tide.studies.references import CANDIDATE_SEEDS, LayoutProbe, layout_of, nearest_references, reference_scenes
from tide.studies.tasks import EditTask, tasks_of

SCENE = Scene("cube", "white", "far", "with", "sand", seed=3)
TASK = EditTask(SCENE, SCENE.caption(), 5, "class", "tree")


@pytest.mark.parametrize("attribute", ATTRIBUTES)
@pytest.mark.parametrize("split", ["dev", "test"])
def test_references_are_training_scenes_that_show_the_target(split, attribute):
    for task in [t for t in tasks_of(split, 40, 1) if t.attribute == attribute]:
        found = reference_scenes(task, torch.tensor(layout_of(task.scene)), 3)
        assert len({scene.seed for scene in found}) == 3
        for scene in found:
            assert scene.split == "train"
            assert scene[attribute] == task.target
            assert scene.seed in CANDIDATE_SEEDS
            differing = [a for a in ATTRIBUTES if a != attribute and scene[a] != task.scene[a]]
            assert len(differing) <= 1
            assert scene.depth == task.scene.depth or attribute == "depth"


def test_the_nearest_reference_comes_first():
    layout = torch.tensor(layout_of(SCENE))
    found = reference_scenes(TASK, layout, len(CANDIDATE_SEEDS))
    away = [float((torch.tensor(layout_of(scene)) - layout).square().sum()) for scene in found]
    assert away == sorted(away)
    across = EditTask(SCENE, SCENE.caption(), 5, "depth", "near")
    centres = [abs(layout_of(scene)[0] - layout[0]) for scene in reference_scenes(across, layout, 8)]
    assert centres == sorted(centres)


def test_a_layout_is_where_the_object_stands():
    centre, lower, height = layout_of(SCENE)
    near = layout_of(SCENE.changed("depth", "near"))
    assert near[1] > lower
    assert near[2] > 1.5 * height
    assert layout_of(SCENE.changed("colour", "red")) == (centre, lower, height)


def test_each_task_has_its_nearest_reference():
    layout = torch.tensor([layout_of(SCENE)])
    assert nearest_references([TASK], layout) == {TASK: reference_scenes(TASK, layout[0], 1)[0]}


@pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")
def test_a_probe_reads_where_the_object_stands():
    bundled = adapter_for(load_pipeline())
    probe = LayoutProbe.fit(bundled, 6, n_images=64)
    tasks = tasks_of("dev", 5, 3)
    images, layouts = probe.draw(bundled, tasks)
    assert images.shape == (5, 3, 64, 64)
    for task, layout in zip(tasks, layouts, strict=True):
        near = task.scene.depth == "near"
        assert (layout[1] > 48) == near  # the lower edge of near objects lies at 54 to 58, of far ones at 39 to 42

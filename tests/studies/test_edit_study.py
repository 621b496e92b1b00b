"""The edit study: references, levels of preservation, the choice on development prompts."""

from __future__ import annotations

import json

import pytest
import torch

from tide.adapters import adapter_for
from tide.sae import TIDE
from tide.scenes.judge import Verdict, load_judge
from tide.scenes.pipeline import DATA, load_pipeline
from tide.scenes.scene import ATTRIBUTES, Scene
from tide.studies import edit_study
from tide.studies.edit_study import BY_REFERENCE, STRENGTHS, SWEPT, EditSizes, EditStudy, Point, Trial, tasks_of
from tide.studies.levels import LEVELS, at_preservation, best, equal_preservation, paired
from tide.studies.methods import target_prompt
from tide.studies.references import CANDIDATE_SEEDS, LayoutProbe, layout_of, reference_scenes
from tide.studies.sections import preservation_table, sweep_table
from tide.studies.tasks import EditOutcome, EditTask
from tide.training import TrainConfig, build_model

needs_pipeline = pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")
SCENE = Scene("cube", "white", "far", "with", "sand", seed=3)
TASK = EditTask(SCENE, SCENE.caption(), 5, "class", "tree")


def outcome(changed: bool, kept: bool) -> EditOutcome:
    return EditOutcome(TASK, changed, kept, valid=True)


def point(factor: float, success: float, preserved: float) -> dict:
    interval = {"success": [success - 0.1, success + 0.1]}
    return {"factor": factor, "success": success, "preserved": preserved, "both": success, "interval": interval}


# -- references -----------------------------------------------------------------------------------------------------


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


# -- levels and pairs -----------------------------------------------------------------------------------------------


def test_at_a_level_the_point_that_changes_most_counts():
    curve = [point(1, 0.2, 1.0), point(2, 0.7, 0.9), point(3, 0.9, 0.6), point(4, 0.5, 0.2)]
    assert at_preservation(curve, 0.9) == curve[1]
    assert at_preservation(curve, 0.5) == curve[2]
    assert at_preservation(curve[2:], 0.9) is None
    table = equal_preservation({"contrast": curve, "steer contrast": curve[2:]})
    assert [float(level) for level in table] == list(LEVELS)
    first = {"success": 0.2, "preserved": 1.0, "interval": [0.1, 0.30000000000000004], "factor": 1}
    assert table["0.95"]["contrast"] == first
    assert table["0.95"]["steer contrast"] == {"success": 0.0, "factor": None}
    assert table["0.5"]["contrast"]["factor"] == 3


def test_strengths_are_chosen_on_development_prompts():
    test = [point(1, 0.2, 1.0), point(2, 0.7, 0.7), point(3, 0.9, 0.96)]
    dev = [point(1, 0.3, 1.0), point(2, 0.6, 0.97), point(3, 0.9, 0.6)]
    found = equal_preservation({"contrast": test}, {"contrast": dev})
    assert found["0.95"]["contrast"]["factor"] == 2
    assert (found["0.95"]["contrast"]["success"], found["0.95"]["contrast"]["preserved"]) == (0.7, 0.7)
    assert found["0.5"]["contrast"]["factor"] == 3


def test_pairs_count_what_only_one_method_does():
    yes, no, half = outcome(True, True), outcome(False, True), outcome(True, False)
    found = paired([yes, yes, yes, yes, yes, no, half, yes], [no, half, no, no, no, yes, no, yes])
    assert (found["only_ours"], found["only_theirs"], found["images"]) == (5, 1, 8)
    assert found["p"] == pytest.approx(2 * (1 + 6) / 64)
    assert paired([yes], [yes])["p"] == 1.0


def test_the_best_setting_changes_and_keeps_then_changes_more():
    kept, nothing, changed, both = ((0, 0, 1), (0, 0, 0), (0, 1, 0), (1, 1, 1))
    found = {
        factor: dict(zip(("both", "success", "preserved"), figures, strict=True))
        for factor, figures in {1.0: kept, 2.0: nothing, 3.0: changed, 4.0: both, 5.0: both}.items()
    }
    assert best([1.0, 2.0, 3.0], found.__getitem__) == 3.0
    assert best([2.0, 1.0], found.__getitem__) == 1.0
    assert best([1.0, 2.0, 3.0, 4.0, 5.0], found.__getitem__) == 4.0  # of equal ones the first


def test_a_point_comes_back_from_its_setting():
    at = Point("contrast", 6, (0.0, 1.0), 2.0)
    assert Point.of("contrast", json.loads(json.dumps(at.setting))) == at


def test_every_method_is_swept_at_one_of_its_strengths():
    assert set(SWEPT) == set(STRENGTHS)
    assert set(BY_REFERENCE) <= set(STRENGTHS)
    assert all(SWEPT[name] in STRENGTHS[name] for name in STRENGTHS)


def test_tasks_take_turns_and_name_their_target():
    tasks = tasks_of("dev", 24, 3)
    assert [sum(t.attribute == a for t in tasks) for a in ATTRIBUTES] == [3] * 8
    for task in tasks:
        assert task.scene.split == "dev"
        assert task.target != task.source
        assert task.source in task.caption
        assert target_prompt(task) != task.caption


# -- the report -----------------------------------------------------------------------------------------------------


def test_the_report_shows_levels_and_every_setting_tried():
    curve = [point(1, 0.9, 0.9)]
    levels = equal_preservation({"contrast": curve, "steer contrast": [point(1, 0.6, 0.8)]})
    html = preservation_table({"equal_preservation": levels})
    assert html.count("<tr") == 1 + len(LEVELS)
    assert "latents, one reference" in html
    assert "80 to 100" in html
    assert preservation_table({}) == ""
    row = {"method": "contrast", "block": 6, "steps": [0.3, 1.0], **point(2, 0.9, 0.8)}
    html = sweep_table({"edit_sweep": {"points": [row]}})
    assert "The 1 settings tried on development prompts" in html
    assert "block 6, steps 30 % to 100 %, 2" in " ".join(html.split())
    assert sweep_table({}) == ""


# -- a whole study, tiny --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled():
    return adapter_for(load_pipeline())


@needs_pipeline
def test_a_probe_reads_where_the_object_stands(bundled):
    probe = LayoutProbe.fit(bundled, 6, n_images=64)
    tasks = tasks_of("dev", 5, 3)
    images, layouts = probe.draw(bundled, tasks)
    assert images.shape == (5, 3, 64, 64)
    for task, layout in zip(tasks, layouts, strict=True):
        near = task.scene.depth == "near"
        assert (layout[1] > 48) == near  # the lower edge of near objects lies at 54 to 58, of far ones at 39 to 42


@pytest.mark.slow
@needs_pipeline
def test_a_study_chooses_on_development_and_measures_on_test(bundled, tmp_path, monkeypatch):
    monkeypatch.setattr(edit_study, "STRENGTHS", {name: (factor,) for name, factor in SWEPT.items()})
    model = build_model(bundled, 6, TrainConfig(n_latents=64, k=8))
    sizes = EditSizes(2, 2, (0, 1), 32, 2, 24, 16, 2, ((0.0, 1.0),))
    study = EditStudy(bundled, load_judge(), model, tmp_path, sizes)
    assert study.blocks == [6, 5]
    sweep = study.sweep()["edit_sweep"]
    assert set(sweep["chosen"]) == set(STRENGTHS)
    assert len(sweep["points"]) == 3 * 2 + 4
    assert [row["method"] for row in sweep["more_references"]["points"]] == list(BY_REFERENCE)
    found = json.loads(json.dumps(study.measure(sweep)))
    assert set(found["trade_off"]) == {*STRENGTHS, "prompt"}
    assert set(found["paired"]) == set(BY_REFERENCE[1:])
    assert found["trade_off"]["contrast"][0]["images"] <= 2
    # Trained once: the second study loads block 5.
    again = edit_study.block_models(bundled, model, [6, 5], tmp_path, sizes, 0)
    assert isinstance(again[5], TIDE)
    assert torch.equal(again[5].W_dec, study.models[5].W_dec)


def test_prompts_without_a_verdict_are_left_out():
    wreck = Verdict({**{a: SCENE[a] for a in ATTRIBUTES}, "class": "no valid object"}, {})
    trial = Trial([TASK], [wreck], torch.zeros(1, 3))
    trial.outcomes["x"] = edit_study.judge_edits([TASK], [wreck], [wreck])
    assert trial.summary("x")["images"] == 0

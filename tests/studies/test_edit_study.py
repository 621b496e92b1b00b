"""The study of edits: its tasks, its choice on development prompts, and a whole one, tiny."""

from __future__ import annotations

import json

import pytest

from tide.sae import TIDE
from tide.scenes.pipeline import DATA
from tide.scenes.scene import ATTRIBUTES
from tide.studies import edit_study, fig6
from tide.studies.bars import EDITS
from tide.studies.bench import Bench
from tide.studies.edit_study import Batch, EditStudy, Sizes, counts, point
from tide.studies.models import Checkpoint
from tide.studies.tasks import EVERYTHING, STYLES, UNGILDING, style_tasks, tasks_of
from tide.studies.trial import PROMPT, Setting
from tide.training import TrainConfig, build_model


def rows(*outcomes: tuple[int, int, int]) -> list[dict]:
    return [
        {"task": i, "changed": bool(c), "kept": bool(k), "valid": bool(v), "outside": 2.0}
        for i, (c, k, v) in enumerate(outcomes)
    ]


def test_settings_are_compared_by_what_they_did():
    parts = [{"outcomes": rows((1, 1, 1), (1, 0, 1))}, {"outcomes": rows((0, 0, 1))}]
    assert counts(parts) == {"both": 1, "success": 2, "preserved": 1}


def test_points_pool_the_seeds():
    """Tasks whose outside does not exist do not count there."""
    tasks = [style_tasks(UNGILDING, "test", 3, seed) for seed in (0, 1)]
    results = [{"outcomes": rows((1, 1, 1), (0, 1, 1))}, {"outcomes": rows((1, 0, 1), (1, 1, 1), (0, 0, 0))}]
    results[1]["outcomes"][2]["outside"] = None
    found, outcomes = point(results, tasks, 3.0)
    assert (found["success"], found["preserved"], found["both"], found["valid"]) == (0.6, 0.6, 0.4, 0.8)
    assert (found["images"], found["factor"], found["outside"]) == (5, 3.0, 2.0)
    assert [o.task for o in outcomes] == [*tasks[0][:2], *tasks[1]]


def test_special_tasks_are_what_they_are_called():
    for seed, split in ((0, "dev"), (3, "test")):
        plain = style_tasks(UNGILDING, split, 5, seed)
        assert {(t.source, t.target, t.scene.split) for t in plain} == {("ornate", "plain", split)}
        styles = style_tasks(STYLES, split, 12, seed)
        assert all(t.source != t.target for t in styles)
        assert {t.target for t in styles} == set(ATTRIBUTES["style"])
        assert len({t.seed for t in [*plain, *styles]}) == 12  # both kinds start from the same noise


def test_development_tasks_share_no_noise_with_test_tasks():
    study = EditStudy(None, None, fig6.DEFAULT, judge=None)
    for kind in (EVERYTHING, UNGILDING, STYLES):
        noise = {
            split: {t.seed for seed in (0, 1, 2) for t in study.tasks(kind, split, seed)} for split in ("dev", "test")
        }
        assert noise["dev"]
        assert not noise["dev"] & noise["test"]


def test_tasks_take_turns_and_name_their_target():
    tasks = tasks_of("dev", 24, 3)
    assert [sum(t.attribute == a for t in tasks) for a in ATTRIBUTES] == [3] * 8
    for task in tasks:
        assert task.scene.split == "dev"
        assert task.target != task.source
        assert task.source in task.caption
        assert task.target_prompt != task.caption


def test_cells_are_named_by_setting_and_batch():
    """Committed grids have these names; a second batch of the same tasks has its own."""
    setting = Setting("contrast", 1.5, (0.0, 0.8))
    assert Batch(1, "dev", EVERYTHING, 0).cell(setting) == "seed 1 dev contrast x1.5 steps 0-0.8"
    assert Batch(1, "dev", EVERYTHING, 2).cell(setting) == "seed 1 dev contrast x1.5 steps 0-0.8 part 2"


def test_many_tasks_are_cut_into_batches(monkeypatch):
    monkeypatch.setattr(edit_study, "DRAW_BATCH", 3)
    study = EditStudy(None, None, Sizes(2, 8, 1, ((0.0, 1.0),), 1, 1, 1, 1), judge=None)
    batches = study.batches(EVERYTHING, "test", 0)
    assert [len(study.tasks_in(batch)) for batch in batches] == [3, 3, 2]
    assert [t for batch in batches for t in study.tasks_in(batch)] == study.tasks(EVERYTHING, "test", 0)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")
def test_a_study_chooses_on_development_and_measures_on_test(bench: Bench, tmp_path, monkeypatch):
    """On a given model, in batches that are smaller than the tasks."""
    monkeypatch.setattr(edit_study, "DRAW_BATCH", 2)
    model: TIDE = build_model(bench.adapter, bench.block, TrainConfig(n_latents=64, k=8))
    sizes = Sizes(2, 3, 0, ((0.0, 1.0), (0.3, 1.0)), 2, 24, 16, 1)
    study = EditStudy(bench, Checkpoint(model), sizes, EDITS)
    said: list[str] = []
    edits = study.run([0], tmp_path, said.append)
    assert set(edits.chosen) == {(name, 0) for name in EDITS}
    assert all(edits.chosen[key] in curve for key, curve in edits.curves.items())
    assert all(each.steps == curve[0].steps for curve in edits.curves.values() for each in curve)
    found = json.loads(json.dumps(edits.summary()))
    assert set(found["curves"]) == set(EDITS)
    assert set(found["chosen"]) == {*EDITS, PROMPT}
    assert set(found["paired"]) == {"contrast", "towards", "swap"}
    assert {len(curve) for curve in found["curves"].values()} == {2}
    assert found["curves"]["contrast"][0]["images"] <= 3
    assert {row["method"] for row in edits.tried()} == set(EDITS)
    assert any(" part 1" in name for name in edits.found)
    study.run([0], tmp_path, said.append)
    assert sum(line.startswith("All ") for line in said[-6:]) == 3

"""Every method of editing draws through the pipeline: it changes the images, and at strength zero it does not."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.scenes.pipeline import DATA, load_pipeline
from tide.studies import class_knowledge
from tide.studies.class_knowledge import class_banks, scene_profiles
from tide.studies.editor import Editor
from tide.studies.methods import METHODS, RIVALS
from tide.studies.references import layout_of, nearest_references
from tide.studies.tasks import KINDS, draw, tasks_of
from tide.training import TrainConfig, build_model

needs_pipeline = pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")


def test_every_method_has_strengths_that_grow_and_rivals_that_know_the_same():
    for spec in METHODS.values():
        assert spec.middle in spec.strengths
        assert list(spec.strengths) == sorted(spec.strengths)
        assert spec.tasks in KINDS
    for ours, others in RIVALS.items():
        assert not METHODS[ours].raw
        assert all(METHODS[other].raw and METHODS[other].knows == METHODS[ours].knows for other in others)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Two prompts, an untrained SAE: what it changes does not matter here, that it does."""
    adapter = adapter_for(load_pipeline())
    torch.manual_seed(0)
    model = build_model(adapter, 6, TrainConfig(n_latents=64, k=8))
    tasks = tasks_of("dev", 2, 3)
    references = nearest_references(tasks, torch.tensor([layout_of(t.scene) for t in tasks]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_knowledge, "TIMESTEPS", 2)
        patch.setattr(class_knowledge, "REFERENCES", 2)
        banks = class_banks(adapter, model, tasks, tmp_path_factory.mktemp("banks"), n_images=24)
    editor = Editor(adapter, model, references, scene_profiles(adapter, model, n_images=16), banks=banks)
    return adapter, tasks, editor, draw(adapter, tasks)


@needs_pipeline
@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_each_image(trial, name):
    adapter, tasks, editor, before = trial
    after = draw(adapter, tasks, METHODS[name].method(editor, METHODS[name].strengths[-1], (0.0, 1.0)))
    assert after.isfinite().all()
    assert ((after - before).abs().flatten(1).amax(1) > 0).all()


@needs_pipeline
@pytest.mark.parametrize(
    "name",
    [
        "contrast",
        "steer contrast",
        "steer bounded",
        "transfer",
        "steer transfer bounded",
        "contrast where latents differ",
        "beside",
        "beside in latents",
    ],
)
def test_no_strength_is_no_edit(trial, name):
    adapter, tasks, editor, before = trial
    after = draw(adapter, tasks, METHODS[name].method(editor, 0.0, (0.0, 1.0)))
    assert torch.equal(after, before)


@needs_pipeline
def test_altered_is_of_as_many_tokens_as_asked(trial):
    """All tokens are the contrast itself, and fewer are another edit."""
    adapter, tasks, editor, _ = trial
    whole = draw(adapter, tasks, METHODS["contrast"].method(editor, 2.0))
    assert torch.equal(draw(adapter, tasks, METHODS["altered"].method(editor, 64)), whole)
    assert not torch.equal(draw(adapter, tasks, METHODS["altered"].method(editor, 4)), whole)

"""Every strategy of editing draws through the pipeline: it changes the images, and at strength zero it does not."""

from __future__ import annotations

import pytest
import torch

from tide.adapters import adapter_for
from tide.scenes.pipeline import DATA, load_pipeline
from tide.studies.edit_study import tasks_of
from tide.studies.fig6 import STRATEGIES
from tide.studies.methods import Contrasts, Methods, scene_profiles
from tide.studies.references import layout_of, reference_scenes
from tide.studies.tasks import draw
from tide.training import TrainConfig, build_model

pytestmark = pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")


@pytest.fixture(scope="module")
def trial():
    """Two prompts, an untrained SAE: what it changes does not matter here, that it does."""
    adapter = adapter_for(load_pipeline())
    torch.manual_seed(0)
    model = build_model(adapter, 6, TrainConfig(n_latents=64, k=8))
    tasks = tasks_of("dev", 2, 3)
    references = {t: reference_scenes(t, torch.tensor(layout_of(t.scene)), 1) for t in tasks}
    profiles = scene_profiles(adapter, model, n_images=48)
    methods = Methods(adapter, model, profiles, Contrasts(adapter, (6,), references))
    return adapter, tasks, methods, draw(adapter, tasks)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_changes_each_image(trial, name):
    adapter, tasks, methods, before = trial
    make = getattr(methods, name.replace(" ", "_"))
    after = draw(adapter, tasks, make(STRATEGIES[name].factors[-1], (0.0, 1.0)))
    assert after.isfinite().all()
    assert ((after - before).abs().flatten(1).amax(1) > 0).all()


@pytest.mark.parametrize("name", ["contrast", "steer contrast", "steer bounded", "transfer", "steer transfer bounded"])
def test_no_strength_is_no_edit(trial, name):
    adapter, tasks, methods, before = trial
    after = draw(adapter, tasks, getattr(methods, name.replace(" ", "_"))(0.0, (0.0, 1.0)))
    assert torch.equal(after, before)


def test_altered_is_of_as_many_tokens_as_asked(trial):
    """All tokens are the contrast itself, and fewer are another edit."""
    adapter, tasks, methods, _ = trial
    whole = draw(adapter, tasks, methods.contrast(2.0))
    assert torch.equal(draw(adapter, tasks, methods.altered(64)), whole)
    assert not torch.equal(draw(adapter, tasks, methods.altered(4)), whole)

"""The models that studies share, and which earlier trainings a study replaces."""

from __future__ import annotations

import json

import pytest
import torch

from tide.errors import TideError
from tide.runs import contents
from tide.studies.bench import Bench
from tide.studies.demo import demo
from tide.studies.models import Models, check_replaceable
from tide.training import TrainConfig


def test_models_are_trained_once_and_shared(bench, tmp_path):
    config = TrainConfig(n_latents=64, k=8, steps=2, batch_tokens=64, checkpoint_every=2)
    models = Models(bench, config, tmp_path)
    first = models.of(3)
    run = contents(tmp_path / "seed-3")
    assert run.kind == "autoencoder"
    assert run.data == {"name": "scenes", "images": 12, "tokens": 1.0, "seed": 0}
    assert set(run.weights) >= {"transformer", "vae", "scheduler"}
    weights = tmp_path / "seed-3" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = Models(bench, config, tmp_path)
    assert again.seconds(3) == 0.0
    assert torch.equal(again.of(3).W_dec, first.W_dec)
    assert weights.stat().st_mtime_ns == written
    assert not torch.equal(again.of(4).W_dec, first.W_dec)
    other = Models(bench, TrainConfig(n_latents=32, k=8, steps=2, batch_tokens=64), tmp_path)
    with pytest.raises(TideError, match=r"was started with other options \(n_latents 64, now 32\)"):
        other.of(3)


def test_models_of_other_data_are_refused(bench, tmp_path):
    config = TrainConfig(n_latents=64, k=8, steps=2, batch_tokens=64, checkpoint_every=2)
    Models(bench, config, tmp_path).of(3)
    moved = Bench(bench.sizes, seed=1, adapter=bench.adapter)
    with pytest.raises(TideError, match=r"seed-3 was trained on other data \(seed 0, now 1\); use the same options"):
        Models(moved, config, tmp_path).of(3)


def training(folder, source) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "training.json").write_text(json.dumps({"config": {}, "history": [], "source": source}))


@pytest.mark.parametrize(
    "source",
    [
        pytest.param({"stores": [], "buffer_rows": 65536}, id="of stores"),
        pytest.param(None, id="of no stated source"),
    ],
)
@pytest.mark.parametrize("name", ["sae", "tide"])
def test_the_demo_does_not_replace_a_training_of_another_command(tmp_path, name, source):
    training(tmp_path / name, source)
    with pytest.raises(TideError, match=f"{name} holds a training of another command; choose another folder$"):
        demo(tmp_path, fast=True, say=lambda line: pytest.fail(f"the demo began: {line}"))


def test_a_checkpoint_alone_is_not_replaced(tmp_path):
    training(tmp_path / "tide", {})
    (tmp_path / "tide/training.json").unlink()
    with pytest.raises(TideError, match="holds a training of another command"):
        check_replaceable(tmp_path / "tide")


def test_a_training_on_a_pool_is_replaced(tmp_path):
    training(tmp_path / "tide", {"rows": 2, "places": "0123"})
    check_replaceable(tmp_path / "tide")


def test_a_new_folder_is_no_training(tmp_path):
    check_replaceable(tmp_path / "tide")

"""One call from a source of batches to the folder of a checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tide import TIDE
from tide.activations import CollectOptions, collect
from tide.activations.memory import ActivationPool
from tide.adapters import Adapter
from tide.data import open_source
from tide.errors import Interrupted, TideError
from tide.files import lock_folder
from tide.provenance import provenance
from tide.runs import contents, read_run
from tide.training import (
    Job,
    Jobs,
    Learner,
    TrainConfig,
    Trainer,
    build_model,
    from_pool,
    live_blocks,
    train,
    train_blocks,
)
from tide.training.to_checkpoint import reserved

CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=4, checkpoint_every=2)


@pytest.fixture(scope="module")
def batches(adapter):
    passes = collect(adapter, open_source("scenes", adapter, images=8), [3], token_fraction=1 / 4)
    return [each[3] for each in passes]


def job_of(batches, adapter: Adapter, **options) -> Job:
    return from_pool(batches, adapter, replace(CONFIG, **options), block=3)


def test_it_trains_as_the_trainer_does(adapter, batches, tmp_path):
    found = train(job_of(batches, adapter), tmp_path / "t", made_by=provenance("train", {"k": 8}, seed=0))
    by_hand = Trainer(build_model(adapter, 3, CONFIG), CONFIG, tmp_path / "by-hand", progress=False)
    by_hand.fit(ActivationPool(batches, 64, seed=0).from_step)
    saved = TIDE.from_pretrained(tmp_path / "t").state_dict()
    assert found.step == 4
    for name, value in by_hand.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert found.history == by_hand.history


def test_what_was_trained_is_written_down(adapter, batches, tmp_path):
    found = train(job_of(batches, adapter), str(tmp_path / "t"), made_by=provenance("train", {"k": 8}, seed=0))
    run, holds = read_run(tmp_path / "t"), contents(tmp_path / "t")
    assert run is not None
    assert holds is not None
    assert (run["command"], run["arguments"]) == ("train", {"k": 8})
    assert (holds.kind, holds.blocks, holds.family) == ("autoencoder", [3], "pixart")
    assert holds.configuration == json.loads(json.dumps(CONFIG.to_dict()))
    assert holds.measured["mse"] == found.history[-1]["mse"]
    assert holds.data["rows"] == 8 * 2 * 16


def test_a_folder_that_holds_a_training(adapter, batches, tmp_path):
    train(job_of(batches, adapter), tmp_path / "t")
    with pytest.raises(TideError, match="already holds a checkpoint; resume, or choose another folder"):
        train(job_of(batches, adapter), tmp_path / "t")
    said: list[str] = []
    train(job_of(batches, adapter, steps=6), tmp_path / "t", resume=True, say=said.append)
    assert said == ["Resumes from step 4 to 6 instead of 4: learning rate and k follow the new schedules."]
    with pytest.raises(TideError, match=r"was started with other options \(lr null, now 0\.5\)"):
        train(job_of(batches, adapter, steps=8, lr=0.5), tmp_path / "t", resume=True)
    with pytest.raises(TideError, match=r"was trained on other data \(rows 256, now 224\)"):
        train(job_of([batches[0].take(slice(32, None))], adapter, steps=8), tmp_path / "t", resume=True)


def test_an_interrupted_training_is_resumed_to_the_same_bits(adapter, batches, tmp_path, monkeypatch):
    step = Learner.train_step

    def interrupted(trainer: Learner, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", interrupted)
        with pytest.raises(Interrupted, match=r"^the checkpoint of step 2 is kept; rerun with resume to continue$"):
            train(job_of(batches, adapter), tmp_path / "t")
    assert contents(tmp_path / "t").measured == {}
    parts = train(job_of(batches, adapter), tmp_path / "t", resume=True)
    whole = train(job_of(batches, adapter), tmp_path / "whole")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[name]), name


def test_what_fails_before_the_first_step_leaves_no_folder(adapter, batches, tmp_path):
    good = job_of(batches, adapter)

    def fail(step: int):
        raise TideError("no batch")
        yield

    for job, message in (
        (replace(good, batches=fail), "no batch"),
        (job_of(batches, adapter, backend="abacus"), "is unknown"),
    ):
        with pytest.raises(TideError, match=message):
            train(job, tmp_path / "new/t")
        assert not (tmp_path / "new").exists()


def test_a_folder_that_another_training_writes_is_found_first(tmp_path):
    with lock_folder(tmp_path / "t"), pytest.raises(TideError, match="is being written by this process already"):
        with reserved(tmp_path / "t", resume=False):
            pytest.fail("not reserved")


# -- several blocks --------------------------------------------------------------------------------------------------

BLOCKS = CONFIG.changed({"steps": 5, "checkpoint_every": 2, "activation": "jumprelu", "centre": True})


def jobs_of(adapter: Adapter, blocks=(6, 3)) -> Jobs:
    images = open_source("scenes", adapter, images=8)
    return live_blocks(adapter, images, BLOCKS, blocks=blocks, options=CollectOptions(token_fraction=1 / 2), cache=True)


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (TIDE.from_pretrained(each).state_dict() for each in (one, other))
    for name, value in first.items():
        assert torch.equal(value, second[name]), (one, name)


@pytest.fixture(scope="module")
def together(adapter, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("together")
    train_blocks(jobs_of(adapter), out)
    return out


def test_each_of_several_blocks_ends_as_if_it_were_trained_alone(adapter, together, tmp_path):
    """A threshold that is set after training, and a mean that is measured before it, included."""
    for block in (3, 6):
        train(jobs_of(adapter, [block]).of[block], tmp_path / str(block))
        assert_same_weights(together / f"block-{block}", tmp_path / str(block))
        assert TIDE.from_pretrained(together / f"block-{block}").config.block == block


def test_the_folder_of_several_blocks_says_what_it_holds(together):
    holds = contents(together)
    assert holds is not None
    assert (holds.kind, holds.blocks) == ("autoencoder", [6, 3])
    assert holds.files == {"block-6": "autoencoder", "block-3": "autoencoder"}
    assert {each.name for each in together.iterdir()} == {"block-3", "block-6", "run.json"}
    alone = contents(together / "block-3")
    assert alone is not None
    assert (alone.blocks, alone.data) == ([3], holds.data)


@pytest.mark.parametrize("at", [0, 2, 4], ids="before step {}".format)
def test_a_kill_between_the_checkpoints_of_two_blocks_is_made_up_for(adapter, together, tmp_path, monkeypatch, at):
    """The block that saved waits for the one that did not."""
    save = Learner.save

    def killed(learner: Learner) -> None:
        if learner.out.name == "block-3" and learner.step > at:
            raise RuntimeError("killed")
        save(learner)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "save", killed)
        with pytest.raises(RuntimeError, match="killed"):
            train_blocks(jobs_of(adapter), tmp_path / "out")
    resumed = train_blocks(jobs_of(adapter), tmp_path / "out", resume=True)
    for block, learner in resumed.items():
        assert learner.step == 5
        assert_same_weights(tmp_path / "out" / f"block-{block}", together / f"block-{block}")


def test_a_block_is_added_to_those_that_are_finished(adapter, together, tmp_path):
    shutil.copytree(together / "block-3", tmp_path / "out/block-3")
    found = train_blocks(jobs_of(adapter), tmp_path / "out", resume=True)
    assert [learner.step for learner in found.values()] == [5, 5]
    assert_same_weights(tmp_path / "out/block-6", together / "block-6")


def test_a_block_that_is_there_already_is_found_first(adapter, together):
    with pytest.raises(TideError, match=r"block-6 already holds a checkpoint; resume, or choose another folder"):
        train_blocks(jobs_of(adapter), together)


def test_an_interruption_says_what_is_kept(adapter, tmp_path, monkeypatch):
    step = Learner.train_step

    def interrupted(learner: Learner, batch):
        if learner.step == 3 and learner.out.name == "block-3":
            raise KeyboardInterrupt
        return step(learner, batch)

    monkeypatch.setattr(Learner, "train_step", interrupted)
    with pytest.raises(Interrupted, match=r"^the blocks' checkpoints of step 2 are kept; rerun with resume"):
        train_blocks(jobs_of(adapter), tmp_path / "out")

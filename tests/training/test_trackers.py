"""Trackers beside TensorBoard: they are told all figures once, change no bit, and end no training."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from tests.helpers.trackers import StandIn
from tide.activations import CollectOptions, collect
from tide.data import open_source
from tide.errors import Interrupted, TideError
from tide.training import Job, Learner, TrainConfig, from_pool, live_blocks, train, train_blocks
from tide.training.tracker_kinds import as_one_process, check_trackers

CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=8, log_every=2, checkpoint_every=4)
OPTIONS = CollectOptions(token_fraction=1 / 4)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, StandIn.name, StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    monkeypatch.setattr(StandIn, "fails", set())


@pytest.fixture
def pooled(adapter) -> Job:
    passes = collect(adapter, open_source("scenes", adapter, images=8), [3], OPTIONS)
    return from_pool([each[3] for each in passes], adapter, CONFIG, block=3)


def live(adapter, blocks=(2, 3), **options):
    source = open_source("scenes", adapter, images=8)
    return live_blocks(adapter, source, replace(CONFIG, **options), blocks=blocks, options=OPTIONS)


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def interrupt_at(monkeypatch, step: int) -> None:
    train_step = Learner.train_step

    def interrupted(learner: Learner, batch):
        if learner.step == step:
            raise KeyboardInterrupt
        return train_step(learner, batch)

    monkeypatch.setattr(Learner, "train_step", interrupted)


def test_a_tracker_is_told_the_figures_of_the_history_and_the_configuration(pooled, tmp_path):
    said: list[str] = []
    found = train(pooled, tmp_path / "t", trackers=["stand-in"], say=said.append)
    (tracker,) = StandIn.made
    assert tracker.run_name == "tide"
    assert [step for step, _ in tracker.logged] == [2, 4, 6, 8]
    assert [{f"train/{n}": v for n, v in e.items() if n != "step"} for e in found.history] == [
        values for _, values in tracker.logged
    ]
    assert (tracker.config["loss.temporal"], tracker.config["n_latents"], tracker.config["block"]) == (1e-4, 96, 3)
    assert tracker.finished == 1
    assert tracker.pictures == []
    assert said == ["stand-in: curves and no pictures of latents, since a store or a pool knows no pictures."]
    assert json.loads((tmp_path / "t/trackers.json").read_text())["stand-in"]["logged"] == 8
    assert PartialState._shared_state == {}


def test_bits_and_configuration_are_the_same_with_and_without(adapter, tmp_path):
    """Of a live training whose latents are drawn after every step, with a threshold in training mode."""
    jobs = [live(adapter, activation=activation) for activation in ("batch_topk", "batch_topk")]
    plain = train_blocks(jobs[0], tmp_path / "plain")
    tracked = train_blocks(jobs[1], tmp_path / "tracked", trackers=["stand-in"], pictures_every=1)
    assert len(StandIn.made) == 2
    for block, learner in plain.items():
        for name, value in weights(learner).items():
            assert torch.equal(value, tracked[block].model.state_dict()[name]), name
        assert learner.history == tracked[block].history
    records = [json.loads((tmp_path / out / "block-3/training.json").read_text()) for out in ("plain", "tracked")]
    assert records[0] == records[1]


def test_every_block_has_a_run_with_pictures_of_its_latents(adapter, tmp_path):
    train_blocks(live(adapter), tmp_path / "set", trackers=["stand-in"], pictures_every=3)
    assert [tracker.config["block"] for tracker in StandIn.made] == [2, 3]
    for tracker in StandIn.made:
        assert [step for step, _ in tracker.pictures] == [3, 6, 8]  # and at the end
        ((picture,),) = (values["latents"] for values in (tracker.pictures[0][1],))
        assert picture.mode == "RGB"
        assert tracker.finished == 1
    StandIn.made.clear()
    train_blocks(live(adapter, (3,)), tmp_path / "none", trackers=["stand-in"], pictures_every=0)
    assert StandIn.made[0].pictures == []


def test_a_resumed_training_continues_the_run_and_logs_nothing_twice(adapter, tmp_path, monkeypatch):
    """Steps 5 and 6 are made again after the checkpoint of step 4, and 6 was logged before."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        patch.setattr(Learner, "save_between_steps", lambda learner: None)  # as a kill leaves it
        with pytest.raises(Interrupted):
            train_blocks(live(adapter, (3,)), tmp_path / "t", trackers=["stand-in"], pictures_every=3)
    run = json.loads((tmp_path / "t/trackers.json").read_text())["stand-in"]
    train_blocks(live(adapter, (3,)), tmp_path / "t", resume=True, trackers=["stand-in"], pictures_every=3)
    first, second = StandIn.made
    assert [step for step, _ in first.logged] == [2, 4, 6]
    assert [step for step, _ in second.logged] == [8]
    assert [step for step, _ in first.pictures + second.pictures] == [3, 6, 8]
    assert json.loads((tmp_path / "t/trackers.json").read_text())["stand-in"]["id"] == run["id"]
    train_blocks(live(adapter, (3,)), tmp_path / "t", resume=True, trackers=["stand-in"])
    assert len(StandIn.made) == 2  # a finished training has nothing to log


def test_no_absolute_path_is_told_to_a_tracker(pooled, tmp_path):
    model = pooled.model
    model.config = replace(model.config, pipeline="/home/me/PixArt")
    train(replace(pooled, data={"name": "/home/me/photos"}), tmp_path / "t", trackers=["stand-in"])
    (tracker,) = StandIn.made
    assert (tracker.config["pipeline"], tracker.config["data"]) == ("PixArt", "photos")


def test_a_picture_that_was_shown_is_recorded_at_once(adapter, tmp_path, monkeypatch):
    """Step 3 is drawn and not logged; the kill comes before any figure is."""
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        patch.setattr(Learner, "save_between_steps", lambda learner: None)
        with pytest.raises(Interrupted):
            train_blocks(live(adapter, (3,), log_every=8), tmp_path / "t", trackers=["stand-in"], pictures_every=3)
    assert json.loads((tmp_path / "t/trackers.json").read_text())["stand-in"]["drawn"] == 3


def test_steps_between_pictures_are_none_or_more(pooled, tmp_path):
    with pytest.raises(TideError, match=r"^pictures_every = -1 must be at least 0; 0 is for no pictures$"):
        train(pooled, tmp_path / "t", trackers=["stand-in"], pictures_every=-1)
    assert not (tmp_path / "t").exists()


def test_an_accelerate_that_does_not_know_a_tracker_of_ours(monkeypatch):
    monkeypatch.delitem(LOGGER_TYPE_TO_CLASS, "trackio")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(TideError, match="tracker trackio needs a newer accelerate: pip install -U accelerate"):
        check_trackers(["trackio"])


def test_a_training_in_the_folder_of_the_work_has_its_name(pooled, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    train(pooled, ".", trackers=["stand-in"])
    assert json.loads(Path("trackers.json").read_text())["stand-in"]["id"].startswith("mine-")


def test_a_tracker_that_dies_gives_one_warning(adapter, pooled, tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn, "fails", {"log"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = train(pooled, tmp_path / "t", trackers=["stand-in"])
    assert [str(each.message) for each in caught if "tracker" in str(each.message)] == [
        "the tracker stand-in ends here (log is broken); the training continues, and training.json and tensorboard/ "
        "hold its figures, too"
    ]
    assert found.step == 8
    assert len(found.history) == 4


def test_a_tracker_that_does_not_start_leaves_nothing(pooled, tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn, "fails", {"start"})
    with pytest.raises(TideError, match=r"^tracker stand-in did not start \(start is broken\); leave it off$"):
        train(pooled, tmp_path / "t", trackers=["stand-in"])
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nope\n"], r"tracker 'nope\\n' is unknown; use one of wandb, trackio, aim, .*swanlab$"),
        (["tensorboard"], "tensorboard is no tracker to ask for: its event files are always written; leave it off"),
        (["stand-in", "stand-in"], "trackers stand-in, stand-in are named twice; name each once"),
        (["wandb"], r'tracker wandb needs the package wandb: pip install "tide-sae\[wandb\]"'),
        (["trackio"], r'tracker trackio needs the package trackio: pip install "tide-sae\[trackio\]"'),
    ],
)
def test_trackers_that_cannot_be_used_are_refused_before_the_work(names, message, monkeypatch, pooled, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TideError, match=message):
        train(pooled, tmp_path / "t", trackers=names)
    assert not (tmp_path / "t").exists()


def test_trackers_see_one_process_and_a_state_of_the_callers_stays(monkeypatch):
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    threads = torch.get_num_threads()
    with as_one_process():
        assert PartialState().is_main_process
        assert {name: os.environ[name] for name in launched} == launched
    assert (PartialState._shared_state, torch.get_num_threads()) == ({}, threads)
    for name in launched:
        monkeypatch.delenv(name)
    PartialState(cpu=True)
    try:
        with as_one_process():
            pass
        assert PartialState._shared_state
    finally:
        PartialState._reset_state()


# -- the real ones -------------------------------------------------------------------------------------------------


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: pip install .[{name}]")


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format after seven bytes. A block of 32 KiB holds pieces, each after
    its checksum, its length and its kind (1 whole, 2 first, 3 middle, 4 last)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def of_wandb(folder: Path) -> dict[int, set[str]]:
    """Step -> what was logged, from the files that W&B writes without a network."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[int, set[str]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in records_of(path.read_bytes()):
            items = {
                "/".join(each.nested_key) or each.key: each.value_json for each in Record.FromString(data).history.item
            }
            if "_step" in items:
                found.setdefault(int(items["_step"]), set()).update(items)
    return found


@needs("wandb")
def test_wandb_offline(adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            train_blocks(live(adapter), tmp_path / "set", trackers=["wandb"], pictures_every=4)
    train_blocks(live(adapter), tmp_path / "set", resume=True, trackers=["wandb"], pictures_every=4)
    for block in (2, 3):
        logged = of_wandb(tmp_path / f"set/block-{block}")
        assert sorted(logged) == [2, 4, 6, 8]
        assert all("train/mse" in names for names in logged.values())
        assert [step for step, names in sorted(logged.items()) if any("latents" in each for each in names)] == [4, 8]
        runs = {path.stem for path in (tmp_path / f"set/block-{block}").glob("wandb/offline-run-*/*.wandb")}
        assert len(runs) == 1  # both folders are of one run


@needs("wandb")
def test_wandb_without_a_key(tmp_path):
    """In a process of its own: W&B keeps the mode that a process has first."""
    code = (
        "from pathlib import Path; from tide.training.tracker_kinds import RunName, begin\n"
        f"begin('wandb', RunName('t', 't'), Path({str(tmp_path)!r}), {{}}, again=False)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_MODE": "online"}
    options = {"env": environment, "stdin": subprocess.DEVNULL, "timeout": 200}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)
    remedy = r"run `wandb login`, or set WANDB_MODE=offline, or leave it off"
    message = rf"TideError: tracker wandb did not start \(.*\); {remedy}$"
    assert re.search(message, done.stderr.strip()), done.stderr


@needs("trackio")
def test_trackio(adapter, tmp_path, monkeypatch):
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setenv("TRACKIO_PROJECT", project := f"test-{tmp_path.name}")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 4)
        with pytest.raises(Interrupted):
            train_blocks(live(adapter), tmp_path / "set", trackers=["trackio"], pictures_every=4)
    train_blocks(live(adapter), tmp_path / "set", resume=True, trackers=["trackio"], pictures_every=4)
    database = SQLiteStorage.get_project_db_path(project)
    try:
        for block in (2, 3):
            run = json.loads((tmp_path / f"set/block-{block}/trackers.json").read_text())["trackio"]["id"]
            with sqlite3.connect(database) as rows:
                found = rows.execute("select step, metrics from metrics where run_name = ?", [run]).fetchall()
            assert sorted(step for step, values in found if b"train/mse" in _bytes(values)) == [2, 4, 6, 8]
            assert sorted(step for step, values in found if b"latents" in _bytes(values)) == [4, 8]
    finally:
        database.unlink()


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def test_known_trackers_are_those_of_accelerate():
    check_trackers(["stand-in", "mlflow"])

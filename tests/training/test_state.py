"""What a training resumes from: states that are damaged, lie, are of another training, or of an older version."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.trainings import MODULATION, D, K, N, assert_same, interrupted, model, state, stream, trainer
from tide.errors import TideError
from tide.files import lock_folder
from tide.images.trained import TrainedOn
from tide.sae import TIDE, TIDEConfig
from tide.training import LossConfig, TrainConfig, Trainer, is_trained
from tide.training.state import check_same

STATE = Path("resume", "state.safetensors")

#: Changes the tensors and the metadata of a state.
Change = Callable[[dict[str, Any], dict[str, str]], Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Trainer:
    job = trainer(tmp_path_factory.mktemp("whole"), steps=6, checkpoint_every=4)
    job.fit(stream)
    return job


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Stopped after four of six steps."""
    out = tmp_path_factory.mktemp("parts")
    with pytest.raises(TideError):
        trainer(out, steps=6, checkpoint_every=4).fit(interrupted(4), source={"rows": 7})
    return out


@pytest.fixture
def out(parts, tmp_path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "out"))


def resume(out: Path, sae: TIDE | None = None, **options) -> Trainer:
    job = trainer(out, TIDE(model().config, seed=9) if sae is None else sae, **{"steps": 6, **options})
    job.fit(stream, resume=True)
    return job


def edit(out: Path, change: Change) -> None:
    with safe_open(out / STATE, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(out / STATE)
    change(tensors, metadata)
    save_file(tensors, out / STATE, metadata=metadata)


def edit_record(out: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """What the state says of the training, and ``training.json`` with it."""

    def changed(tensors: dict[str, Any], _: dict[str, str]) -> None:
        record = json.loads(tensors["record"].numpy().tobytes())
        change(record)
        text = json.dumps(record)
        tensors["record"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        (out / "training.json").write_text(text)

    edit(out, changed)


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# -- damaged states ----------------------------------------------------------------------------------------------


def replaced(name: str, value: torch.Tensor | Callable[[torch.Tensor], torch.Tensor]) -> Change:
    def change(tensors: dict[str, Any], _: dict[str, str]) -> None:
        tensors[name] = value if isinstance(value, torch.Tensor) else value(tensors[name])

    return change


def progress(text: str) -> Change:
    return lambda tensors, metadata: metadata.update(progress=text)


def spoilt(at: Any, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor[at] = value
        return tensor

    return change


DAMAGES = {
    "moments of a wider model": (
        replaced("optimizer.0.exp_avg", torch.zeros(N, D + 1)),
        rf"optimizer.0.exp_avg has shape \[{N}, {D + 1}\], not \[{N}, {D}\]",
    ),
    "moments of fewer latents": (
        replaced("optimizer.1.exp_avg_sq", torch.zeros(N // 2, D)),
        "optimizer.1.exp_avg_sq has shape",
    ),
    "an empty moment": (replaced("optimizer.0.exp_avg_sq", torch.zeros(0)), "optimizer.0.exp_avg_sq has shape"),
    "a step of many numbers": (replaced("optimizer.0.step", torch.zeros(5)), r"optimizer.0.step has shape \[5\]"),
    "moments in float64": (replaced("optimizer.0.exp_avg", torch.Tensor.double), "optimizer.0.exp_avg is float64"),
    "whole-number moments": (replaced("optimizer.0.exp_avg", torch.Tensor.long), "optimizer.0.exp_avg is int64"),
    "a moment that is gone": (lambda t, m: t.pop("optimizer.2.exp_avg"), "lacks optimizer.2.exp_avg"),
    "moments of no parameter": (replaced("optimizer.77.step", torch.zeros(())), "optimizer.77.step"),
    "no moments at all": (
        lambda t, m: [
            [t.pop(name) for name in list(t) if name.startswith("optimizer.")],
            progress('{"step": 4, "revived": 0, "moments": []}')(t, m),
        ],
        "holds no moments of the optimiser",
    ),
    "NaN in a moment": (replaced("optimizer.0.exp_avg", spoilt((1, 2), float("nan"))), "holds NaN or inf"),
    "a negative square": (replaced("optimizer.0.exp_avg_sq", spoilt((1, 2), -1.0)), "exp_avg_sq is negative"),
    "a negative count of steps": (replaced("optimizer.0.step", torch.tensor(-1.0)), "optimizer.0.step is negative"),
    "steps to come": (replaced("optimizer.0.step", torch.tensor(5.0)), "optimizer.0.step lies beyond step 4"),
    "silence of fewer latents": (replaced("silent_for", lambda t: t[1:].clone()), "silent_for has shape"),
    "silence in float32": (replaced("silent_for", torch.Tensor.float), "silent_for is float32"),
    "negative silence": (replaced("silent_for", lambda t: t - 10**6), "silent_for is negative"),
    "no silence": (lambda t, m: t.pop("silent_for"), "lacks silent_for"),
    "weights of another width": (replaced("model.W_enc", torch.zeros(N, D + 2)), "model.W_enc has shape"),
    "weights that are gone": (lambda t, m: t.pop("model.b_dec"), "lacks model.b_dec"),
    "NaN in the weights": (replaced("model.W_dec", spoilt((0, 0), float("inf"))), "model.W_dec holds NaN or inf"),
    "a scale of 0": (replaced("model.activation_scale", torch.tensor(0.0)), "activation_scale is not positive"),
    "a tensor too many": (replaced("more", torch.zeros(3)), "more, which nothing asks for"),
    "no progress": (lambda t, m: m.clear(), "is not valid JSON"),
    "progress that is no JSON": (progress("{"), "is not valid JSON"),
    "progress that is a list": (progress("[4]"), "must be an object"),
    "a step in words": (progress('{"step": "4", "revived": 0}'), "step is '4' and must be a whole number"),
    "a step before the first": (progress('{"step": -1, "revived": 0}'), "says step -1 of 6"),
    "a step after the last": (progress('{"step": 7, "revived": 0}'), "says step 7 of 6"),
    "fewer than none revived": (progress('{"step": 4, "revived": -1}'), "and -1 revived"),
    "counts of dead latents in words": (
        progress('{"step": 4, "revived": 0, "dead_counts": ["3"]}'),
        r"dead_counts\[0\] is '3' and must be a whole number",
    ),
    "a third count": (progress('{"step": 4, "revived": 0, "dead_counts": [3, 3, 3]}'), r"dead_counts is \[3, 3, 3\];"),
    "a count below 0": (progress('{"step": 4, "revived": 0, "dead_counts": [3, -1]}'), r"dead_counts is \[3, -1\];"),
    "more dead than there are": (
        progress(f'{{"step": 4, "revived": 0, "dead_counts": [{N + 1}]}}'),
        rf"dead_counts is \[{N + 1}\];",
    ),
    "a record that is no JSON": (
        replaced("record", torch.zeros(9, dtype=torch.uint8)),
        r"\(record\) is not valid JSON",
    ),
    "a record in float": (replaced("record", torch.ones(9)), r"\(record\) is not valid JSON"),
    "an empty record": (replaced("record", torch.zeros(0, dtype=torch.uint8)), r"\(record\) is not valid JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_one_line_and_nothing_changes(out, damage):
    change, message = DAMAGES[damage]
    edit(out, change)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(TideError, match=message) as error:
        resume(out)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda r: r.pop("config"), "config is missing", id="no config"),
        pytest.param(lambda r: r.update(config=[]), r"config is \[\] and must be an object", id="config a list"),
        pytest.param(lambda r: r.pop("history"), "history is missing", id="no history"),
        pytest.param(lambda r: r.update(history={}), "history is {} and must be a list", id="history an object"),
        pytest.param(lambda r: r["history"].append(3), r"history\[0\] is 3", id="an entry that is a number"),
        pytest.param(lambda r: r["history"].append({"step": "3"}), "must be a finite number", id="a step in words"),
        pytest.param(lambda r: r["history"].append({"step": 3, "mse": float("nan")}), "mse is nan", id="NaN"),
        pytest.param(lambda r: r["history"].append({"mse": 3}), r"history\[0\].step is missing", id="no step"),
        pytest.param(lambda r: r["history"].append({"step": None}), r"history\[0\].step is missing", id="step null"),
        pytest.param(lambda r: r.update(lengths=[3]), r"lengths\[0\] is 3", id="lengths"),
        pytest.param(lambda r: r.update(source=3), "source is 3", id="source"),
        pytest.param(lambda r: r["config"].update(steps="6"), "says step 4 of 6", id="steps in words"),
        pytest.param(lambda r: r["config"].update(loss=3), "other options", id="a group that is a number"),
        pytest.param(lambda r: r["config"].update(tomorrow=3), r"\(tomorrow 3, now null\)", id="an unknown option"),
        pytest.param(lambda r: r["model"].update(block=7), r"\(block 7, now 6\)", id="another block"),
        pytest.param(lambda r: r.update(model=3), "model is 3", id="a model that is a number"),
    ],
)
def test_a_record_that_lies_is_one_line(out, change, message):
    edit_record(out, change)
    with pytest.raises(TideError, match=message) as error:
        resume(out)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["training.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_the_state_alone_is_enough(out, whole, name, damage):
    """A kill between two files of a save leaves the others as they were, or away."""
    if damage == "gone":
        (out / name).unlink()
    else:
        (out / name).write_bytes((out / name).read_bytes()[:20])
    job = resume(out)
    assert_same(state(job.model), state(whole.model))
    assert job.history == whole.history
    assert_same(state(TIDE.from_pretrained(out)), state(whole.model))
    assert is_trained(str(out), job.config)


def test_images_that_trained_it_before_count_as_well(tmp_path):
    """A data set that is streamed may hold others by now."""
    before = TrainedOn(("pictures",), frozenset({"0" * 16, "1" * 16}), 0.1)
    now = TrainedOn(("pictures",), frozenset({"1" * 16, "2" * 16}), 0.1)
    sae = model()
    sae.trained_on = before
    with pytest.raises(TideError):
        trainer(tmp_path, sae, steps=6, checkpoint_every=4).fit(interrupted(4))
    for trained_on, found in ((None, before), (now, before | now)):
        resumed = model()
        resumed.trained_on = trained_on
        job = trainer(tmp_path, resumed, steps=6, checkpoint_every=4)
        job.fit(stream, resume=True)
        assert TIDE.from_pretrained(tmp_path).trained_on == found
    assert found.images == {"0" * 16, "1" * 16, "2" * 16}


def test_a_checkpoint_without_its_state_is_not_overwritten(out):
    shutil.rmtree(out / "resume")
    message = r"out holds a checkpoint and no resume/state.safetensors to resume from; train into another folder$"
    with pytest.raises(TideError, match=message):
        resume(out)


def test_a_finished_run_mends_what_a_kill_left_behind(out, whole):
    """The state of the last step was there, and the model not yet."""
    stale = (out / "model.safetensors").read_bytes()
    job = resume(out)
    (out / "model.safetensors").write_bytes(stale)
    (out / "training.json").unlink()
    assert not is_trained(out, job.config)
    resume(out)
    assert_same(state(TIDE.from_pretrained(out)), state(whole.model))
    assert is_trained(out, job.config)


# -- older versions ----------------------------------------------------------------------------------------------


def as_older(out: Path) -> None:
    """As runs were written before states held a record and options had been added."""

    def state_of_old(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        del tensors["record"]
        metadata["progress"] = '{"step": 4, "revived": 0}'

    edit(out, state_of_old)

    def training_of_old(record: dict[str, Any]) -> None:
        for name in ("model", "source", "lengths"):
            del record[name]
        for name in ("undo", "bandwidth", "modulation_lr"):
            del record["config"][name]
        del record["config"]["loss"]["k_aux"]
        del record["config"]["progressive_k"]

    edit_json(out / "training.json", training_of_old)

    def config_of_old(config: dict[str, Any]) -> None:
        del config["bandwidth"]
        del config["undo"]
        del config["modulation"]["timestep_offset"]

    edit_json(out / "config.json", config_of_old)


def test_options_that_are_newer_than_a_run_count_as_their_defaults(out, whole):
    as_older(out)
    job = resume(out)
    assert_same(state(job.model), state(whole.model))
    assert job.history == whole.history
    assert (out / STATE).stat().st_size > 0
    again = resume(out)  # and from what it then wrote
    assert_same(state(again.model), state(whole.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modulation_lr": 0.3}, r"\(modulation_lr 0.1, now 0.3\)"),
        ({"loss": LossConfig(temporal=1e-3, sparsity=0.1, k_aux=9)}, r"\(loss.k_aux 64, now 9\)"),
    ],
)
def test_options_that_are_newer_than_a_run_are_refused_at_other_values(out, options, message):
    as_older(out)
    with pytest.raises(TideError, match=message):
        resume(out, **options)


def test_a_model_option_that_is_newer_than_a_run(out):
    as_older(out)
    with pytest.raises(TideError, match=r"\(undo false, now true\)"):
        resume(out, model(undo=True))


def test_an_older_state_needs_its_training_json(out):
    as_older(out)
    (out / "training.json").unlink()
    with pytest.raises(TideError, match=r"training.json does not exist"):
        resume(out)


def test_a_run_that_names_no_activation_is_of_topk(out):
    edit_json(out / "training.json", lambda record: record["config"].pop("activation"))
    record = json.loads((out / "training.json").read_text())
    old = TrainConfig.from_dict({**record["config"], "activation": "topk"})
    check_same(out, record, old, model().config, None)
    with pytest.raises(TideError, match=r'was started with other options \(activation "topk", now "jumprelu"\)'):
        check_same(out, record, replace(old, activation="jumprelu"), model().config, None)


def test_a_run_from_before_an_empty_density(out, whole):
    """A density beside k has no effect, and older trainings always state one."""
    edit_json(out / "training.json", lambda record: record["config"].update(density=0.05))
    assert whole.config.k is not None
    assert resume(out).history == whole.history


def test_a_finished_run_of_an_older_version_is_known(out):
    job = resume(out)
    edit_json(out / "training.json", lambda record: record["config"].pop("undo"))
    assert is_trained(out, job.config)
    assert is_trained(out, TrainConfig.from_dict({**job.config.to_dict(), "log_every": 7}))
    assert not is_trained(out, TrainConfig.from_dict({**job.config.to_dict(), "undo": True}))
    assert not is_trained(out, TrainConfig.from_dict({**job.config.to_dict(), "steps": 7}))


# -- another training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sae", "message"),
    [
        (TIDEConfig(D, N * 2, K, modulation=MODULATION, family="pixart", block=6), r"\(n_latents 32, now 64\)"),
        (TIDEConfig(D, N, K, family="pixart", block=6), "modulation"),
        (TIDEConfig(D, N, K, activation="gated", family="pixart", block=6), "other options"),
    ],
    ids=["more latents", "no modulation", "another activation"],
)
def test_another_model_is_refused_before_its_moments_are_loaded(out, sae, message):
    with pytest.raises(TideError, match=message):
        resume(out, TIDE(sae))


def test_another_source_is_refused(out, whole):
    job = trainer(out, TIDE(model().config), steps=6)
    message = r"out was trained on other data \(rows 7, now 8\); give the same data, or train into another folder$"
    with pytest.raises(TideError, match=message):
        job.fit(stream, resume=True, source={"rows": 8})
    job = trainer(out, TIDE(model().config), steps=6)
    job.fit(stream, resume=True, source={"rows": 7})
    assert_same(state(job.model), state(whole.model))


def test_a_source_that_is_not_stated_stays_as_it_was(out):
    resume(out)
    assert json.loads((out / "training.json").read_text())["source"] == {"rows": 7}


def test_a_source_that_was_not_stated_is_recorded_now(out):
    edit_record(out, lambda record: record.pop("source"))
    trainer(out, TIDE(model().config), steps=6).fit(stream, resume=True, source={"rows": 8})
    assert json.loads((out / "training.json").read_text())["source"] == {"rows": 8}


@pytest.mark.parametrize("steps", [5, 9], ids=["fewer, and not yet made", "more"])
def test_another_number_of_steps_goes_on_by_its_schedules(out, steps):
    job = resume(out, steps=steps, log_every=1)
    again = trainer(out.parent / "again", steps=steps, log_every=1)
    again.fit(stream)
    assert job.step == steps
    rates = [[(entry["lr"], entry["k"]) for entry in each.history][-(steps - 4) :] for each in (job, again)]
    assert rates[0] == rates[1]
    written = json.loads((out / "training.json").read_text())
    assert written["lengths"] == [{"at": 4, "before": 6, "steps": steps}]
    assert written["config"]["steps"] == steps


def test_a_length_is_recorded_once_more_where_it_changes_again(out):
    resume(out, steps=8)
    job = resume(out, steps=10)
    assert job.lengths == [{"at": 4, "before": 6, "steps": 8}, {"at": 8, "before": 8, "steps": 10}]


def test_fewer_steps_than_were_made(out):
    with pytest.raises(TideError, match=r"out has made 4 steps, more than 3; give more steps, or another folder$"):
        resume(out, steps=3)


# -- one folder, one training ------------------------------------------------------------------------------------


def test_a_second_training_is_refused_while_one_runs(tmp_path):
    """Of this process, too; what the first one writes stays whole."""

    def batches(start: int):
        for i, each in enumerate(stream(start)):
            if i == 3:
                with pytest.raises(TideError, match=r"out is being written by this process already; wait for it or"):
                    trainer(tmp_path / "out", steps=6).fit(stream)
            yield each

    job = trainer(tmp_path / "out", steps=6)
    job.fit(batches)
    assert_same(state(TIDE.from_pretrained(tmp_path / "out")), state(job.model))
    with lock_folder(tmp_path / "out"):
        pass  # it is free again


def test_leftovers_of_a_killed_run_are_removed(out):
    for folder in (out, out / "resume"):
        (folder / ".model.safetensors.12-abc.tmp").mkdir()
        (folder / ".model.safetensors.12-abc.tmp" / "half").write_text("x")
    resume(out)
    assert not [path for path in out.rglob(".*")]


def test_several_ranks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TideError, match="one of 2 processes"):
        trainer(tmp_path / "out").fit(stream)
    assert not (tmp_path / "out").exists()

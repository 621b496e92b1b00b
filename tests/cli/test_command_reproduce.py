"""``tide reproduce``: what a study is given, and what its folder says that it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tide import TIDE
from tide.cli.reproduce import STUDIES
from tide.runs import contents, read_run
from tide.sae import TIDEConfig
from tide.training import LossConfig, TrainConfig


@pytest.fixture
def study(monkeypatch):
    """A study in the place of one of the long ones: what it is given, and a picture and a table in its folder."""
    given = []

    def reproduce(options) -> str:
        given.append(options)
        for name in ("fig4.png", "fig4.csv", "notes.txt"):
            (options.out / name).write_text("")
        return "It scales."

    for name in ("fig1", "fig4", "bars"):
        monkeypatch.setattr(f"tide.studies.{name}.reproduce", reproduce, raising=False)
    return given


def test_a_study(cli, study, tmp_path):
    result = cli("reproduce", "fig4", "--seeds", 2, "--seed", 5, "--steps", 7, "--out", tmp_path / "out")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"\nIt scales.\nTables and pictures are in {tmp_path}/out.\n"
    (options,) = study
    assert (options.out, options.seeds, options.seed, options.steps) == (tmp_path / "out", 2, 5, 7)
    assert options.each_seed(3) == [5, 6]
    assert (options.fast, options.models, options.sae, options.prompts) == (False, None, None, None)
    holds = contents(tmp_path / "out")
    run = read_run(tmp_path / "out")
    assert (run["command"], run["arguments"]["study"], run["seed"]) == ("reproduce", "fig4", 5)
    assert {"versions", "machine"} <= run.keys()
    assert (holds.kind, holds.pipeline, holds.autoencoder) == ("study", "scenes", {})
    assert (holds.blocks, holds.family, holds.data) == ([6], "pixart", {"name": "scenes"})
    assert {"transformer", "vae", "scheduler"} <= holds.weights.keys()
    assert (holds.configuration["study"], holds.configuration["steps"]) == ("fig4", 7)
    assert holds.measured == {"verdict": "It scales."}
    assert holds.files == {"fig4.csv": "table", "fig4.png": "chart"}


@pytest.mark.parametrize(("fast", "suffix"), [([], ""), (["--fast"], "-fast")], ids=["whole", "fast"])
def test_folders_of_its_own(cli, study, tmp_path, monkeypatch, fast, suffix):
    monkeypatch.chdir(tmp_path)
    assert cli("reproduce", "fig1", *fast).code == 0
    (options,) = study
    assert options.out == Path(f"runs/reproduce/fig1{suffix}")
    assert options.models == Path(f"runs/reproduce/models{suffix}")
    assert options.models.is_dir()


def test_options_of_the_trainings(cli, study, tmp_path):
    words = ["--set", "activation=topk", "density=0.05", "--set", "loss.temporal=1e-3"]
    assert cli("reproduce", "fig1", *words, "--out", tmp_path / "out", "--models", tmp_path / "models").code == 0
    (options,) = study
    config = options.training(TrainConfig(steps=7))
    assert config == TrainConfig(steps=7, activation="topk", density=0.05, loss=LossConfig(temporal=1e-3))
    recorded = contents(tmp_path / "out").configuration
    assert recorded["set"] == {"activation": "topk", "density": 0.05, "loss.temporal": 1e-3}


def test_the_bars_name_their_checkpoint(cli, study, tmp_path):
    torch.manual_seed(0)
    TIDE(TIDEConfig(8, 16, 2, block=5)).save_pretrained(tmp_path / "tide")
    words = ["--sae", tmp_path / "tide", "--prompts", 4, "--edit-prompts", 2]
    assert cli("reproduce", "bars", *words, "--out", tmp_path / "out").code == 0
    (options,) = study
    assert (options.sae, options.prompts, options.edit_prompts) == (tmp_path / "tide", 4, 2)
    holds = contents(tmp_path / "out")
    assert holds.blocks == [5]
    assert holds.autoencoder["folder"] == str(tmp_path / "tide")
    assert holds.autoencoder["config"]["n_latents"] == 16


def test_bars_need_a_checkpoint(cli, tmp_path):
    result = cli("reproduce", "bars", "--out", tmp_path / "out")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "measure a checkpoint; give its folder with --sae" in result.err
    assert not (tmp_path / "out").exists()


def test_interrupted(cli, study, tmp_path, monkeypatch):
    def interrupted(options) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("tide.studies.fig4.reproduce", interrupted)
    result = cli("reproduce", "fig4", "--out", tmp_path)
    assert result.code == 130
    assert "finished cells are kept: the same command resumes with the others" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: STUDY; see `tide reproduce --help`"),
        (["fig9"], f"STUDY: 'fig9' is not a study; the studies are {', '.join(STUDIES)}; see `tide reproduce --help`"),
        (["table1", "--seeds", "0"], "--seeds: '0' is not a number of seeds; give a whole number, 1 to 1000"),
        (["table1", "--seeds", "many"], "--seeds: 'many' is not a number of seeds; give a whole number, 1 to 1000"),
        (["fig4", "--steps", "0"], "--steps: '0' is not a count; give a whole number, 1 to 2147483647"),
        (["ablation", "--threads", "0"], "--threads: '0' is not a number of threads; give a whole number, 1 to "),
        (["table1", "--backend", "fpga"], "fpga"),
        (["bars", "--sae", "/none/tide", "--out", "out"], "/none/tide/config.json does not exist; check the path"),
        (["bars", "--sae", "s", "--seeds", "2"], "--seeds is not used by bars; leave it off"),
        (["fig4", "--prompts", "2"], "--prompts is not used by fig4; leave it off"),
        (["fig4", "--models", "m"], "--models is not used by fig4; leave it off"),
        (["fig4", "--set", "k=3"], "--set is not used by fig4; leave it off"),
        (["fig1", "--set"], "--set has no value; give it one or leave it off"),
        (["fig1", "--set", "denisty=0.1"], "--set denisty is not an option of the training configuration; known: "),
        (["fig1", "--set", "k=many"], "k = 'many' must be"),
        (["fig1", "--set", "lr=.inf"], "lr = inf is not finite; give a number that is"),
        (["fig1", "--set", "steps=3"], "--set steps is not used; give --steps, if the study has it"),
        (
            ["table1", "--set", "modulation=false"],
            "--set modulation is not used: the study sets it itself; leave it",
        ),
        (
            ["fig1", "--set", "batch_tokens=64"],
            "--set batch_tokens is not used: the study sets it itself",
        ),
    ],
)
def test_what_is_refused(cli, study, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = cli("reproduce", *words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err
    assert not study
    assert not list(tmp_path.iterdir())

"""``--adapter``: every command that runs a pipeline takes one of your own, and says what is wrong with it."""

from __future__ import annotations

import json

import pytest

from tide.cli.app import COMMANDS, class_of
from tide.cli.options import options_of
from tide.sae import TIDE, TIDEConfig

#: Command -> options besides ``--adapter``, ``--sae`` and ``--out``.
RUNS = {
    "guard": ["make", "--concept", "house", "--put", "tree"],
    "collect": ["--pipeline", "scenes", "--data", "scenes"],
    "train": ["--pipeline", "scenes", "--data", "scenes"],
    "evaluate": ["--data", "scenes"],
    "sweep": ["--data", "scenes"],
    "concepts": ["--concepts", "near", "--data", "scenes"],
    "atlas": ["--data", "scenes"],
    "trajectory": ["--prompt", "near"],
    "effect": ["--prompt", "near", "--towards", "far"],
    "bank": ["--concepts", "near", "--data", "scenes"],
    "edit": ["--prompt", "near", "--erase", "1"],
}


def test_every_command_with_a_pipeline_takes_one():
    assert {name for name in COMMANDS if "adapter" in options_of(class_of(name))} == RUNS.keys() | {
        "adapters",
        "browse",
    }


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "mine"
    TIDE(TIDEConfig(d_model=32, n_latents=64, k=4, block=1, family="mine", pipeline="p")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_a_file_that_is_not_there(cli, tmp_path, checkpoint, name):
    sae = ["--sae", checkpoint] if "sae" in options_of(class_of(name)) and name != "train" else []
    file = tmp_path / "none.py"
    result = cli(name, *RUNS[name], *sae, "--adapter", file, "--out", tmp_path / "out")
    message = f"the adapter {file} does not exist; give a Python file or the name of a module"
    assert result == (2, "", f"tide: error: {message}\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["evaluate", "sweep", "concepts", "atlas", "trajectory", "effect", "bank", "edit"])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_checkpoint_of_a_family_without_an_adapter_says_which(cli, tmp_path, checkpoint, name, recorded):
    if recorded:
        run = {
            "command": "train",
            "arguments": {"adapter": "my_\nadapter.py"},
            "seed": 0,
            "versions": {},
            "machine": {},
        }
        (checkpoint / "run.json").write_text(json.dumps(run))
    result = cli(name, *RUNS[name], "--sae", checkpoint, "--pipeline", "scenes", "--out", tmp_path / "out")
    trained = " (it was trained with --adapter my_ adapter.py)" if recorded else ""
    message = f"{checkpoint} is of the family 'mine', which has no adapter here; give --adapter{trained}"
    assert result == (2, "", f"tide: error: {message}\n")


def test_a_plain_sae_of_a_store_needs_no_adapter(cli, tmp_path):
    result = cli("train", "--store", tmp_path, "--sae", "--adapter", "a.py", "--out", tmp_path / "out")
    assert result.err == "tide: error: --adapter is not used by a plain SAE of a --store; leave it off\n"


def test_the_doctor_names_the_devices(cli, monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert json.loads(cli("doctor", "--json").out)["devices"] == ["cpu", "mps"]
    assert "devices        cpu, mps\n" in cli("doctor").out

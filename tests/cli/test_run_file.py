"""Every folder that a command makes says in run.json what it holds, and no other file repeats it."""

from __future__ import annotations

import json

import pytest

from tests.helpers.cli_samples import SMALL
from tide.cli.app import COMMANDS
from tide.runs import contents, read_run

CHECKPOINT = ["--sae", "{sae}", "--pipeline", "{pipeline}"]
DRAWN = [*CHECKPOINT, "--prompt", "near", "--n-steps", "4"]

#: Of every command that makes a folder: the kind, and the least that makes it.
MAKERS = {
    "plan": ("plan", ["--pipeline", "{pipeline}", "--images", "2", "--machine", "nvidia-h200"]),
    "collect": ("activations", ["--pipeline", "{pipeline}", "--data", "{images}", "--images", "2"]),
    "train": ("autoencoder", ["--store", "{store}", "--steps", "2", *SMALL]),
    "evaluate": ("evaluation", [*CHECKPOINT, "--data", "{images}", "--loss-timesteps", "1", "--loss-images", "2"]),
    "sweep": ("sweep", [*CHECKPOINT, "--data", "{images}", "--timesteps", "1", "--loss-images", "2"]),
    "concepts": ("concepts", [*CHECKPOINT, "--data", "{images}", "--concepts", "near", "--timesteps", "1"]),
    "atlas": ("atlas", [*CHECKPOINT, "--data", "{images}", "--images", "4", "--timesteps", "1"]),
    "trajectory": ("trajectory", DRAWN),
    "effect": ("effect", [*DRAWN, "--towards", "far"]),
    "bank": ("bank", [*CHECKPOINT, "--data", "{images}", "--concepts", "near", "--timesteps", "1"]),
    "edit": ("edit", [*DRAWN, "--erase", "1"]),
    "score": ("score", ["--before", "{images}", "--after", "{images}", "--judge"]),
    "convert": ("conversion", ["{sae}", "--to", "saelens", "--at-timestep", "500"]),
    "demo": ("study", []),
    "reproduce": ("study", ["fig4"]),
}


@pytest.fixture
def short_studies(monkeypatch) -> None:
    """Nothing in the place of the long studies."""
    monkeypatch.setattr("tide.studies.demo.demo", lambda *args, **options: {"headline": "", "config": {"seed": 0}})
    monkeypatch.setattr("tide.studies.fig4.reproduce", lambda options: "It scales.")


def test_every_command_is_there():
    assert MAKERS.keys() | {"adapters", "browse", "doctor", "guard", "names", "push", "pull"} == COMMANDS.keys()


@pytest.mark.parametrize("command", MAKERS)
@pytest.mark.usefixtures("short_studies")
def test_a_folder_says_what_it_holds(cli, command, pipeline, images, store, checkpoint, tmp_path):
    kind, words = MAKERS[command]
    places = {"pipeline": pipeline, "images": images, "store": store / "block-6", "sae": checkpoint}
    out = tmp_path / "out"
    result = cli(command, *(word.format(**places) for word in words), "--out", out)
    assert result.code == 0, result.err
    run, holds = read_run(out), contents(out)
    assert (run["command"], run["arguments"]["out"]) == (command, str(out))
    assert holds.kind == kind
    if kind == "score":  # of pictures, whatever drew them
        assert (holds.blocks, holds.family, holds.pipeline) == ([], None, None)
    else:
        assert (holds.blocks, holds.family) == ([6], "pixart")
        assert holds.pipeline == ("scenes" if kind == "study" else str(pipeline))
    assert holds.data or kind == "conversion"  # of a checkpoint, whatever trained it
    assert holds.configuration or kind == "activations"
    assert {"transformer", "scheduler"} <= holds.weights.keys() or kind in (
        "plan", "trajectory", "effect", "bank", "edit", "score", "conversion"
    )  # fmt: skip
    if "--sae" in words:
        assert (holds.autoencoder["folder"], len(holds.autoencoder["weights"])) == (str(checkpoint), 16)
    if kind != "study":
        assert all((out / name).exists() for name in holds.files)
    for path in out.glob("*.json"):
        assert path.name == "run.json" or "run" not in json.loads(path.read_text())

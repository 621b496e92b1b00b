"""Every option of every command, in every mode: it is used, or refused in one line. What is walked is the parsers."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.helpers.cli_samples import SMALL
from tide.cli.app import COMMANDS, command_parsers, given_options, parse, usage_of
from tide.cli.settings import train_config
from tide.errors import TideError
from tide.training import TrainConfig

NAMES = [command.__name__.rsplit(".", 1)[1] for command in COMMANDS]

#: Command lines that together have every mode of every aspect of every command. Those with ``{...}`` are run as well.
LINES = {
    "demo": ["--out {out}"],
    "doctor": [""],
    "collect": [
        "--pipeline {pipeline} --data {images} --out {out}",
        "--pipeline {pipeline} --data scenes --images 2 --out {out}",
        "--pipeline p --data a/name --out o",
        "--pipeline {pipeline} --sampling --data {images} --images 2 --timesteps 2 --out {out}",
        "--pipeline {pipeline} --sampling --prompts {prompts} --timesteps 2 --out {out}",
    ],
    "train": [
        "--store {store} --steps 2 --out {out} {small}",
        "--store {store} --sae --steps 2 --out {out} {small}",
        "--pipeline {pipeline} --data {images} --steps 2 --out {out} {small}",
        "--pipeline {pipeline} --data scenes --images 4 --steps 2 --out {out} {small}",
        "--pipeline p --data a/name --out o",
        "--pipeline p --out o",
    ],
    "evaluate": [
        "--sae {sae} --pipeline scenes --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --images 8 --loss-timesteps 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 8 --loss-timesteps 1 --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --data . --images 8 --loss-timesteps 1 --loss-images 2 --out o",
    ],
    "concepts": [
        "--sae {sae} --pipeline scenes --concepts near --images-per-concept 24 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --concepts near --images-per-concept 4 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 20 --concepts near --timesteps 1 --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --images-per-concept 4 --timesteps 1 --out o",
    ],
    "atlas": [
        "--sae {sae} --pipeline scenes --images 4 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --timesteps 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 4 --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --images 4 --timesteps 1 --out o",
    ],
    "trajectory": [
        "--sae s --prompt near --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --n-steps 4 --out {out}",
    ],
    "edit": [
        "--sae {sae} --pipeline {pipeline} --prompt near --erase 1 --out {out}",
        "--sae s --prompt near --target file --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --out {out}",
        "--sae s --prompt near --change near=far --n-steps 4 --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --contrast "
        "--towards-image {image} --out {out}",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --altered 2 --out {out}",
        "--sae s --prompt near --erase 1 --guidance 1 --out o",
    ],
    "reproduce": [
        f"{study} --out {{out}}" for study in ("fig1", "table1", "fig4", "fig5", "fig6", "ablation", "centring")
    ],
}

#: A value of every option that takes one and is no choice.
VALUES = {
    **dict.fromkeys(("batch_size", "buffer_rows", "steps", "n_steps", "timesteps", "loss_timesteps"), "3"),
    **dict.fromkeys(("images", "loss_images", "images_per_concept", "top_images", "edit_prompts", "seeds"), "3"),
    **dict.fromkeys(("latents", "altered", "erase_top", "invert_top", "towards_top", "threads", "seed"), "2"),
    **dict.fromkeys(("erase", "invert", "block", "strength"), "1"),
    **dict.fromkeys(("out", "models", "data", "store", "pipeline", "sae", "config", "towards_image", "mask"), "here"),
    **dict.fromkeys(("target", "save_target", "clip", "lpips", "prompt", "towards", "concepts"), "there"),
    **dict.fromkeys(("split", "image_column", "caption_column", "tensor", "backend"), "name"),
    **dict.fromkeys(("fit", "token_fraction"), "1/4"),
    "prompts": "3",
    "assignments": "k=3",
    "change": "near=far",
    "scale": "1=2",
    "guidance": "2",
    "device": "cpu",
    "quota": "1GB",
    "size": "64",
}

ALL_LINES = [(command, line) for command, lines in LINES.items() for line in lines]


def options(command: str) -> dict[str, argparse.Action]:
    return {action.dest: action for action in command_parsers()[command]._actions if action.dest != "help"}


def given(action: argparse.Action) -> list[str]:
    if action.nargs == 0:
        return [action.option_strings[0]]
    value = next(iter(action.choices)) if action.choices else "0 1" if action.dest == "steps" else VALUES[action.dest]
    return [action.option_strings[0], *(value.split() if action.nargs == 2 else [value])]


@pytest.mark.parametrize("command", NAMES)
def test_every_option_is_declared_once(command):
    usage, known = usage_of(command), set(options(command))
    every = usage.every.split()
    some = set().union(*(aspect.options for aspect in usage.aspects))
    assert len(every) == len(set(every))
    assert set(every) | some == known
    assert not set(every) & some


@pytest.mark.parametrize("command", NAMES)
def test_the_lines_have_every_mode(command, images):
    lines = [parse([command, *filled(line, images=str(images))]) for line in LINES[command]]
    for aspect in usage_of(command).aspects:
        modes = {aspect.of(args) for args in lines}
        # A plain SAE's and a TIDE's store are told apart by files that these lines do not have.
        assert modes == set(aspect.modes), modes ^ set(aspect.modes)


def filled(line: str, **names: str) -> list[str]:
    """The words of a line; what has no name is a path to nothing."""
    names = {"small": shlex.join(SMALL), **names}
    known = ("out", "pipeline", "images", "image", "prompts", "store", "sae", "small")
    return shlex.split(line.format(**{name: names.get(name, f"/none/{name}") for name in known}))


@pytest.mark.parametrize(("command", "line"), ALL_LINES, ids=[f"{c} {line}" for c, line in ALL_LINES])
def test_what_a_mode_does_not_use_is_refused(cli, command, line, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [command, *filled(line, images=str(images))]
    args, usage = parse(words), usage_of(command)
    unused = {name: aspect.of(args) for aspect in usage.aspects for name in aspect.unused(aspect.of(args))}
    for name, action in options(command).items():
        if name not in unused or name in given_options(command, words[1:]):
            continue
        result = cli(*words, *given(action))
        first = next(aspect.of(args) for aspect in usage.aspects if name in aspect.unused(aspect.of(args)))
        flag = action.option_strings[0]
        assert (result.code, result.err) == (2, f"tide: error: {flag} is not used {first}; leave it off\n")
    assert not list(tmp_path.iterdir())


def test_a_default_that_is_given_counts_as_given(cli, store, tmp_path):
    for option in (["--split", "train"], ["--timesteps", "20"], ["--tensor", "output"], ["--block", "penultimate"]):
        result = cli("train", "--store", store / "block-6", *option, "--out", tmp_path / "out")
        assert result.err == f"tide: error: {option[0]} is not used with --store; leave it off\n"


def beside_others(command: str, words: list[str]) -> set[str]:
    """Options of which a line gives another one: they exclude each other."""
    found, there = set(), given_options(command, words)
    for group in command_parsers()[command]._mutually_exclusive_groups:
        names = {action.dest for action in group._group_actions}
        found |= names - there.keys() if names & there.keys() else set()
    return found


class Watched(argparse.Namespace):
    """Remembers which of the arguments were read."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Watched.read.add(name)
        return super().__getattribute__(name)


@pytest.fixture
def stand_ins(monkeypatch, pipeline, tmp_path_factory) -> None:
    """The random pipeline in the place of the one that ships, and nothing in that of the long studies."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(pipeline, data / "pipeline")
    monkeypatch.setattr("tide.scenes.pipeline.DATA", data)
    monkeypatch.setattr("tide.studies.demo.demo", lambda *args, **options: {"headline": ""})
    figures = SimpleNamespace(evaluate=lambda *args, **options: {}, verdicts=lambda figures: [])
    monkeypatch.setitem(sys.modules, "tide.studies.bars", figures)
    for study in ("fig1", "table1", "fig4", "fig5", "fig6", "ablation", "centring"):
        monkeypatch.setattr(f"tide.studies.{study}.reproduce", lambda options: "")


RUN = [(command, line) for command, line in ALL_LINES if "{" in line or not line]


@pytest.mark.parametrize(("command", "line"), RUN, ids=[f"{c} {line}" for c, line in RUN])
@pytest.mark.usefixtures("stand_ins")
def test_a_run_reads_what_it_is_said_to_use(command, line, pipeline, images, store, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").write_text("a red house, near\na blue cone, far\n")
    paths = {"pipeline": pipeline, "images": images, "image": images / "00.png", "store": store / "block-6"}
    paths |= {"sae": checkpoint, "out": tmp_path / "out", "prompts": tmp_path / "prompts"}
    words = filled(line, **{name: str(path) for name, path in paths.items()})
    args, usage = parse([command, *words]), usage_of(command)
    used = set(options(command)).difference(*(aspect.unused(aspect.of(args)) for aspect in usage.aspects))
    used -= beside_others(command, words)
    watched = Watched(**vars(args))
    Watched.read = set()
    args.run(watched)
    assert used - Watched.read == set()


def test_the_watch_sees_what_is_read():
    watched = Watched(one=1, two=2)
    Watched.read = set()
    vars(watched)
    assert "one" not in Watched.read
    assert watched.one == 1
    assert "one" in Watched.read


def test_the_commands_that_the_readme_shows_are_accepted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith("tide ")]
    assert {words[0] for words in lines} >= {"collect", "train", "evaluate", "concepts", "atlas", "edit"}
    for words in lines:
        assert parse(words).command == words[0]


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["bandwidth=0.3"], "--set bandwidth is not used with activation = topk; leave it off"),
        (["loss.k_aux=32"], "--set loss.k_aux is not used with loss.auxk = 0; leave it off"),
        (["modulation=false", "undo=true"], "--set undo is not used without modulation; leave it off"),
        (["modulation_chunk=mlp"], "--set modulation_chunk is not used with modulation_init = identity; leave it off"),
        (["n_latents=96", "expansion=4"], "--set expansion is not used with n_latents; leave it off"),
        (
            ["progressive_k.shape=off", "progressive_k.start=2"],
            "--set progressive_k.start is not used with progressive",
        ),
        (["activation=relu", "loss.delta=0.1"], "--set loss.delta is not used with activation = relu; leave it off"),
        (["steps=3"], "--set steps is not used with --steps; leave one of them off"),
    ],
)
def test_settings_without_effect_are_refused(assignments, message):
    with pytest.raises(TideError) as error:
        train_config(None, assignments, {"steps": 7})
    assert str(error.value).startswith(message)


def test_a_plain_sae_has_no_modulation():
    assert train_config(None, [], plain=True).modulation is False
    with pytest.raises(TideError, match="--set modulation is not used with --sae; leave one of them off"):
        train_config(None, ["modulation=true"], plain=True)


def test_a_file_may_list_defaults_that_have_no_effect(tmp_path):
    """A file of all options, as a run writes them, is no question of each; a value of one's own is."""
    file = tmp_path / "train.yaml"
    file.write_text("bandwidth: 0.3\nloss: {k_aux: 64}\n")
    assert train_config(file, []) == TrainConfig()
    file.write_text("bandwidth: 0.5\n")
    with pytest.raises(TideError, match=r"bandwidth of .*train.yaml is not used with activation = topk; leave it off"):
        train_config(file, [])

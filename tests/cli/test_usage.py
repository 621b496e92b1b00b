"""Every option of every command, in every mode: it is used, or refused in one line. What is walked is the classes."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import tyro
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

import tide
from tests.helpers.banks import small_bank
from tests.helpers.cli_samples import SMALL
from tests.helpers.foreign_saes import write_foreign
from tests.helpers.guards import ALWAYS, guard_of
from tests.helpers.trackers import StandIn
from tide.cli.app import COMMANDS, class_of, command, main
from tide.cli.command import Command
from tide.cli.edit_bank import FromBank
from tide.cli.edit_where import DrawnWhere
from tide.cli.options import Activations, Autoencoder, Autoencoders, Data, Model, Option, options_of
from tide.cli.parsing import given_options
from tide.cli.reproduce import STUDIES
from tide.cli.settings import train_config
from tide.editing import save_bank
from tide.errors import TideError
from tide.guards import save_guard
from tide.loading import load_sae
from tide.sae import TIDE, TIDEConfig
from tide.training import TrainConfig

#: Command lines that together have every mode of every aspect of every command. Those with ``{...}`` are run as well.
LINES = {
    "demo": ["--out {out}"],
    "doctor": [""],
    "adapters": [
        "",
        "--pipeline {pipeline}",
        "check --pipeline {pipeline}",
        "probe --pipeline {pipeline} --write {out}.py",
    ],
    "plan": [
        "--pipeline {pipeline} --images 4 --machine nvidia-h200 --out {out}",
        "--d-model 8 --blocks 2 --tokens 4 --images 4 --machine nvidia-h200 --out {out}",
    ],
    "collect": [
        "--pipeline {pipeline} --data {images} --out {out}",
        "--pipeline {pipeline} --data scenes --images 2 --out {out}",
        "--pipeline p --data a/name --out o",
        "--pipeline p --data a.parquet --out o",
        "--pipeline {pipeline} --data {images} --transcoder feed_forward --out {out}",
        "--pipeline {pipeline} --sampling --data {images} --images 2 --timesteps 2 --out {out}",
        "--pipeline {pipeline} --sampling --prompts {prompts} --timesteps 2 --out {out}",
    ],
    "train": [
        "--store {store} --steps 2 --out {out} {small}",
        "--store {store} --sae --steps 2 --out {out} {small}",
        "--pipeline {pipeline} --data {images} --steps 2 --out {out} {small}",
        "--pipeline {pipeline} --data scenes --images 4 --steps 2 --out {out} {small}",
        "--pipeline {pipeline} --data {images} --transcoder feed_forward --steps 2 --out {out} {small}",
        "--pipeline p --data a/name --out o",
        "--pipeline p --data a.parquet --out o",
        "--pipeline p --out o",
        "--pipeline {pipeline} --data {images} --steps 2 --tracker stand-in --out {out} {small}",
    ],
    "evaluate": [
        "--sae {sae} --pipeline scenes --images 8 --loss-timesteps 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --images 8 --loss-timesteps 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 8 --loss-timesteps 1 --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --data a.parquet --out o",
        "--sae s --data . --images 8 --loss-timesteps 1 --loss-images 2 --out o",
    ],
    "sweep": [
        "--sae {sae} --pipeline scenes --images 16 --timesteps 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --images 8 --timesteps 1 --loss-images 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 16 --timesteps 1 --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --data a.parquet --out o",
        "--sae s --data . --images 8 --timesteps 1 --loss-images 2 --out o",
    ],
    "concepts": [
        "--sae {sae} --pipeline scenes --concepts near --images-per-concept 24 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --concepts near --images-per-concept 4 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 20 --concepts near --timesteps 1 --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --data a.parquet --out o",
        "--sae s --images-per-concept 4 --timesteps 1 --out o",
    ],
    "atlas": [
        "--sae {sae} --pipeline scenes --images 4 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --timesteps 1 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 4 --index --out {out}",
        "--sae s --data a/name --out o",
        "--sae s --data a.parquet --out o",
        "--sae s --images 4 --timesteps 1 --out o",
    ],
    "browse": [
        "{sae} --pipeline scenes",
        "{sae} --pipeline {pipeline} --data {images}",
        "{sae} --pipeline {pipeline} --data scenes --images 4",
        "s --data a/name",
        "s --data a.parquet",
        "{indexed} --export {out}",
    ],
    "names": [
        "{sae} --list",
        "s --clip c --words w",
        "s --captions --concepts --vision http://localhost/v1 --vision-model m --latents 3",
    ],
    "guard": [
        "make --concept house --put tree --sae s --out o",
        "make --concept near --put far --sae {sae} --pipeline {pipeline} --data {images} --out {out}",
        "make --concept near --put far --sae {sae} --pipeline {pipeline} --data scenes --images 20 --out {out}",
        "make --concept house --put tree --sae s --data a/name --out o",
        "make --concept house --put tree --sae s --data a.parquet --out o",
        "show g",
        "draw g --prompt near --out o",
        "draw {guard} --prompt near --n-steps 2 --pipeline {pipeline} --out {out}",
    ],
    "push": [
        "r me/x",
        "{sae} me/x --dry-run",
    ],
    "pull": ["me/x --out o"],
    "trajectory": [
        "--sae s --prompt near --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --n-steps 4 --out {out}",
    ],
    "effect": [
        "--sae s --prompt near --change near=far --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --top 2 --out {out}",
    ],
    "bank": [
        "--sae {sae} --pipeline scenes --concepts near --images-per-concept 24 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data {images} --concepts near --images-per-concept 4 --out {out}",
        "--sae {sae} --pipeline {pipeline} --data scenes --images 20 --concepts near --timesteps 1 --out {out}",
        "--sae s --concepts near --data a/name --out o",
        "--sae s --concepts near --data a.parquet --out o",
        "--sae s --concepts near --images-per-concept 4 --timesteps 1 --out o",
    ],
    "edit": [
        "--sae {sae} --pipeline {pipeline} --prompt near --erase 1 --out {out}",
        "--sae s --prompt near --target file --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --out {out}",
        "--sae s --prompt near --change near=far --n-steps 4 --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --contrast "
        "--towards-image {image} --out {out}",
        "--sae {sae} --pipeline {pipeline} --prompt near --towards far --n-steps 2 --altered 2 --out {out}",
        "--sae {sae} --pipeline {pipeline} --prompt near --change near=far --n-steps 2 --beside --where 2 --out {out}",
        "--sae s --prompt near --erase 1 --guidance 1 --out o",
        "--sae {sae} --pipeline {pipeline} --prompt near --erase 1 --n-steps 2 --where 2 --out {out}",
        "--sae {sae} --pipeline {pipeline} --prompt near --erase 1 --n-steps 2 --search --out {out}",
        "--sae {sae} --pipeline {pipeline} --recipe {recipe} --out {out}",
        "--sae {sae} --pipeline {pipeline} --prompt near --bank {bank} --what blue --where house --n-steps 2 "
        "--out {out}",
    ],
    "score": [
        "--before {images} --after {images} --judge --out {out}",
        "--before b --after a --clip c --out o",
    ],
    "convert": [
        "{foreign} --out {out}",
        "f --transcoder attention --out o",
        "{plain} --to saelens --out {out}",
    ],
    "reproduce": [
        *(f"{study} --out {{out}}" for study in ("fig1", "table1", "fig4", "fig5", "fig6", "ablation", "centring")),
        "sparsity --out {out}",
        "where --out {out}",
        "bank --out {out}",
        "safety --out {out}",
        "bars --sae {sae} --out {out}",
    ],
}

#: A value of every option that takes one.
VALUES = {
    **dict.fromkeys(("batch_size", "buffer_rows", "reuse", "steps", "n_steps", "timesteps", "loss_timesteps"), "3"),
    **dict.fromkeys(("images", "loss_images", "images_per_concept", "top_images", "edit_prompts", "seeds"), "3"),
    **dict.fromkeys(
        (
            "latents",
            "limit",
            "port",
            "altered",
            "erase_top",
            "invert_top",
            "towards_top",
            "threads",
            "seed",
            "workers",
            "minutes",
            "vision_seed",
            "top",
            "points",
        ),
        "2",
    ),
    **dict.fromkeys(("erase", "invert", "block", "strength"), "1"),
    **dict.fromkeys(("where", "where_threshold", "where_grow", "where_smooth", "where_hold"), "1"),
    **dict.fromkeys(("bank", "what", "what_from", "guard", "concept", "put"), "there"),
    **dict.fromkeys(("out", "models", "data", "store", "pipeline", "sae", "config", "towards_image", "mask"), "here"),
    **dict.fromkeys(("search_sae", "search_prompts", "recipe", "export", "merge", "words"), "here"),
    **dict.fromkeys(("before", "after", "inception"), "here"),
    **dict.fromkeys(("to", "from_library"), "saelens"),
    **dict.fromkeys(("family",), "name"),
    **dict.fromkeys(("at_timestep",), "5"),
    **dict.fromkeys(("dtype",), "fp32"),
    **dict.fromkeys(("branch",), "both"),
    **dict.fromkeys(("transcoder",), "attention"),
    **dict.fromkeys(("study",), "fig4"),
    **dict.fromkeys(("target", "save_target", "clip", "lpips", "prompt", "towards", "concepts"), "there"),
    **dict.fromkeys(("split", "image_column", "caption_column", "tensor", "backend", "adapter", "component"), "name"),
    **dict.fromkeys(("fit", "token_fraction", "hold_out"), "1/4"),
    **dict.fromkeys(("d_model", "blocks", "tokens", "gpus", "n_latents", "k", "batch_tokens", "epochs"), "4"),
    **dict.fromkeys(("machine", "activation", "host"), "name"),
    **dict.fromkeys(("vision", "vision_model"), "name"),
    **dict.fromkeys(("code", "write"), "name"),
    **dict.fromkeys(("subfolder", "revision", "license", "message", "results"), "name"),
    "memory": "1GB",
    "prompts": "3",
    "set": "k=3",
    "change": "near=far",
    "contrasts": "near=far",
    "what_by": "mean",
    "scale": "1=2",
    "guidance": "2",
    "device": "cpu",
    "quota": "1GB",
    "part": "0/2",
    "size": "64",
    "shard_latents": "1",
    "tracker": "wandb",
    "tracker_images": "2",
}

ALL_LINES = [(command, line) for command, lines in LINES.items() for line in lines]


def is_flag(option: Option) -> bool:
    return get_args(option.type)[0] is bool


def given(option: Option) -> list[str]:
    if is_flag(option):
        return [option.flag]
    return [option.flag, *("0 1".split() if option.n_words == 2 else [VALUES[option.name]])]


@pytest.mark.parametrize("name", COMMANDS)
def test_aspects_name_options_that_there_are(name):
    known = set(options_of(class_of(name)))
    assert {each for aspect in class_of(name).usage for each in aspect.options} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(capsys, name):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    for option in options_of(class_of(name)).values():
        if option.name not in ("study", "checkpoint", "runs", "action", "folder", "repository"):  # which have no flags
            assert re.search(rf"^\W*{option.flag}\b.*\n?.*[a-z]{{3}}", shown, re.MULTILINE), option.flag


@pytest.mark.parametrize("name", COMMANDS)
def test_the_lines_have_every_mode(name, images):
    lines = [command([name, *filled(line, images=str(images))]) for line in LINES[name]]
    for aspect in class_of(name).usage:
        modes = {aspect.of(each) for each in lines}
        # A plain SAE's and a TIDE's store are told apart by files that these lines do not have.
        assert modes == set(aspect.modes), modes ^ set(aspect.modes)


def filled(line: str, **names: str) -> list[str]:
    """The words of a line; what has no name is a path to nothing."""
    names = {"small": shlex.join(SMALL), **names}
    known = (
        "out",
        "pipeline",
        "images",
        "image",
        "prompts",
        "store",
        "sae",
        "indexed",
        "recipe",
        "bank",
        "guard",
        "foreign",
        "plain",
    )
    return shlex.split(line.format(**{name: names.get(name, f"/none/{name}") for name in (*known, "small")}))


@pytest.mark.parametrize(("name", "line"), ALL_LINES, ids=[f"{c} {line}" for c, line in ALL_LINES])
def test_what_a_mode_does_not_use_is_refused(cli, name, line, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [name, *filled(line, images=str(images))]
    asked, usage = command(words), class_of(name).usage
    unused = {each: aspect.of(asked) for aspect in usage for each in aspect.unused(aspect.of(asked))}
    there = given_options(class_of(name), words[1:])
    for each, option in options_of(class_of(name)).items():
        if each not in unused or each in there:
            continue
        result = cli(*words, *given(option))
        first = next(aspect.of(asked) for aspect in usage if each in aspect.unused(aspect.of(asked)))
        assert (result.code, result.err) == (2, f"tide: error: {option.flag} is not used {first}; leave it off\n")
    assert not list(tmp_path.iterdir())


def test_a_default_that_is_given_counts_as_given(cli, store, tmp_path):
    for option in (["--split", "train"], ["--timesteps", "20"], ["--tensor", "output"], ["--block", "penultimate"]):
        result = cli("train", "--store", store / "block-6", *option, "--out", tmp_path / "out")
        assert result.err == f"tide: error: {option[0]} is not used with --store; leave it off\n"


def beside_others(name: str, words: list[str]) -> set[str]:
    """Options of which a line gives another one: they exclude each other."""
    group_type = type(tyro.conf.create_mutex_group(required=False))
    groups: dict[int, set[str]] = {}
    for option in options_of(class_of(name)).values():
        for note in option.notes:
            if isinstance(note, group_type):
                groups.setdefault(id(note), set()).add(option.name)
    there = given_options(class_of(name), words).keys()
    return {each for names in groups.values() if names & there for each in names - there}


@contextmanager
def watching() -> Iterator[set[str]]:
    """The fields of commands and of groups of options that are read in the block, but for their being recorded."""
    found: set[str] = set()

    def watched(self: Any, name: str) -> Any:
        if sys._getframe(1).f_code.co_name != "_value":
            found.add(name)
        return object.__getattribute__(self, name)

    with pytest.MonkeyPatch.context() as patch:
        for kind in (Command, Activations, Autoencoder, Autoencoders, Data, DrawnWhere, FromBank, Model):
            patch.setattr(kind, "__getattribute__", watched, raising=False)
        yield found


@pytest.fixture
def stand_ins(monkeypatch, pipeline, tmp_path_factory) -> None:
    """The random pipeline in the place of the one that ships, and nothing in that of the long studies; a server that
    ends when all that it needs is loaded; guards of few images, whatever these tell."""
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(pipeline, data / "pipeline")
    monkeypatch.setattr("tide.scenes.pipeline.DATA", data)
    monkeypatch.setattr(
        "tide.browser.serving.serve",
        lambda runs, opening, **options: opening.source(runs[0], opening.adapter(runs[0])),
    )
    monkeypatch.setattr("tide.studies.demo.demo", lambda *args, **options: {"headline": "", "config": {}})
    monkeypatch.setattr("tide.guards.from_captions.FEWEST", 1)
    monkeypatch.setattr("tide.guards.making.LEAST_AUROC", 0)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, StandIn.name, StandIn)
    for study in STUDIES:
        monkeypatch.setattr(f"tide.studies.{study}.reproduce", lambda options: "")


RUN = [(name, line) for name, line in ALL_LINES if "{" in line or not line]


@pytest.mark.parametrize(("name", "line"), RUN, ids=[f"{c} {line}" for c, line in RUN])
@pytest.mark.usefixtures("stand_ins")
def test_a_run_reads_what_it_is_said_to_use(
    name, line, pipeline, images, store, checkpoint, indexed, adapter, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").write_text("a red house, near\na blue cone, far\n")
    tide.Recipe("near", (tide.Change((1,), "add", 1.0),), n_steps=2).save(tmp_path / "recipe")
    paths = {"pipeline": pipeline, "images": images, "image": images / "00.png", "store": store / "block-6"}
    paths |= {
        "sae": checkpoint,
        "indexed": indexed,
        "out": tmp_path / "out",
        "prompts": tmp_path / "prompts",
        "recipe": tmp_path / "recipe",
        "bank": tmp_path / "bank",
        "guard": tmp_path / "guard",
    }
    if "{foreign}" in line:
        paths["foreign"] = tmp_path / "foreign"
        write_foreign(paths["foreign"], "sparsify", "topk")
    if "{plain}" in line:
        paths["plain"] = tmp_path / "plain"
        TIDE(TIDEConfig(d_model=8, n_latents=16, k=2)).save_pretrained(paths["plain"])
    if "{bank}" in line:
        save_bank(tmp_path / "bank", small_bank(load_sae(checkpoint, adapter)))
    if "{guard}" in line:
        width = adapter.encode_prompts(["near"])["encoder_hidden_states"].shape[-1]
        sae = load_sae(checkpoint, adapter)
        save_guard(tmp_path / "guard", guard_of(adapter, sae, ALWAYS, width))
    words = filled(line, **{name: str(path) for name, path in paths.items()})
    asked, usage = command([name, *words]), class_of(name).usage
    used = set(options_of(class_of(name))).difference(*(aspect.unused(aspect.of(asked)) for aspect in usage))
    used -= beside_others(name, words)
    with watching() as read:
        asked.run()
    assert used - read == set()


def test_the_watch_sees_what_is_read():
    asked = command(["doctor"])
    with watching() as read:
        assert "json" not in read
        assert asked.json is False
    assert "json" in read


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["activation=topk", "bandwidth=0.3"], "--set bandwidth is not used with activation = topk; leave it off"),
        (["loss.k_aux=32"], "--set loss.k_aux is not used with loss.auxk = 0; leave it off"),
        (["modulation=false", "undo=true"], "--set undo is not used without modulation; leave it off"),
        (
            ["activation=jumprelu", "modulation=false", "timestep_thresholds=true"],
            "--set timestep_thresholds is not used without modulation; leave it off",
        ),
        (
            ["activation=topk", "timestep_thresholds=true"],
            "timestep_thresholds need activation = batch_topk or jumprelu, not topk",
        ),
        (
            ["activation=topk", "timestep_thresholds=false"],
            "--set timestep_thresholds is not used with activation = topk; leave it off",
        ),
        (["activation=jumprelu", "match_l0=true"], "--set match_l0 is not used with activation = jumprelu; leave it"),
        (["activation=batch_topk", "bandwidth=0.4"], "--set bandwidth is not used with activation = batch_topk; leave"),
        (["modulation_chunk=mlp"], "--set modulation_chunk is not used with modulation_init = identity; leave it off"),
        (["n_latents=96", "expansion=4"], "--set expansion is not used with n_latents; leave it off"),
        (
            ["progressive_k.shape=off", "progressive_k.start=2"],
            "--set progressive_k.start is not used with progressive",
        ),
        (["activation=relu", "loss.delta=0.1"], "--set loss.delta is not used with activation = relu; leave it off"),
        (["steps=3"], "--set steps is not used with --steps; leave one of them off"),
        (["shard_latents=2"], "--set shard_latents is not used with --shard-latents; leave one of them off"),
    ],
)
def test_settings_without_effect_are_refused(assignments, message):
    with pytest.raises(TideError) as error:
        train_config(None, assignments, {"steps": 7, "shard_latents": 1})
    assert str(error.value).startswith(message)


def test_settings_of_thresholds_that_are_used():
    timed = train_config(None, ["activation=batch_topk", "timestep_thresholds=true", "bandwidth=0.4"])
    assert (timed.timestep_thresholds, timed.bandwidth) == (True, 0.4)
    assert train_config(None, ["activation=relu", "k=8", "match_l0=true"]).match_l0
    # The embedding alone is of use to them.
    assert train_config(
        None, ["activation=jumprelu", "timestep_thresholds=true", "modulation_trainable=false"]
    ).timestep_thresholds


def test_a_plain_sae_has_no_modulation():
    assert train_config(None, [], plain=True).modulation is False
    with pytest.raises(TideError, match="--set modulation is not used with --sae; leave one of them off"):
        train_config(None, ["modulation=true"], plain=True)


def test_a_file_may_list_defaults_that_have_no_effect(tmp_path):
    """A file of all options, as a run writes them, is no question of each; a value of one's own is."""
    file = tmp_path / "train.yaml"
    file.write_text("activation: topk\nbandwidth: 0.3\nloss: {k_aux: 64}\n")
    assert train_config(file, []) == TrainConfig(activation="topk")
    file.write_text("activation: topk\ndensity: 0.05\nk: 32\n")  # as versions before wrote it
    assert train_config(file, []) == TrainConfig(activation="topk", density=0.05, k=32)
    file.write_text("activation: topk\nbandwidth: 0.5\n")
    with pytest.raises(TideError, match=r"bandwidth of .*train.yaml is not used with activation = topk; leave it off"):
        train_config(file, [])

"""``tide convert``: SAEs of other libraries as checkpoints that commands take, and checkpoints as theirs."""

from __future__ import annotations

import json

import pytest

from tests.helpers.converted import assert_same, tide_of
from tests.helpers.foreign_saes import CASES, function_of, rows_apart, write_foreign
from tide.runs import contents
from tide.sae import TIDE


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_foreign_folder(cli, tmp_path, case):
    write_foreign(tmp_path / "in", *case)
    transcoder = ["--transcoder", "attention"] if "transcoder" in case[1] else []
    result = cli("convert", tmp_path / "in", "--out", tmp_path / "out", "--block", 3, "--k", 5, *transcoder)
    assert result.code == 0, result.err
    assert result.out.startswith(f"config.json, model.safetensors in {tmp_path / 'out'}.\n")
    model, function = TIDE.from_pretrained(tmp_path / "out", block=3), function_of(tmp_path / "in")
    x = rows_apart(function)
    assert_same(model.dense(x), function(x.double()).z)
    holds = contents(tmp_path / "out")
    assert (holds.kind, holds.blocks, holds.configuration["library"]) == ("autoencoder", [3], case[0])
    assert holds.configuration["source"]


def test_a_checkpoint_at_a_timestep(cli, tmp_path):
    model = tide_of("topk modulated")
    model.save_pretrained(tmp_path / "tide")
    out = tmp_path / "out"
    result = cli("convert", tmp_path / "tide", "--to", "saelens", "--at-timestep", 310, "--out", out)
    assert result.out == f"sae_weights.safetensors, cfg.json in {out}.\nLost: all timesteps but 310.\n"
    x = rows_apart(function_of(out))
    assert_same(model.dense(x, 310.0), function_of(out)(x.double()).z)
    assert contents(out).configuration == {
        "library": "saelens",
        "kind": "topk",
        "lost": ["all timesteps but 310"],
        "timestep": 310.0,
    }
    back = cli("convert", out, "--out", tmp_path / "back")
    assert back.code == 0, back.err
    assert TIDE.from_pretrained(tmp_path / "back").config.block == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tide", "--to", "saelens"], "give the timestep that it is to be frozen at (--at-timestep T)"),
        (["tide"], "is a TIDE checkpoint; say which library's folder to write (--to)"),
        (["foreign", "--block", "penultimate"], "penultimate is not known without the model; give the block's number"),
        (["foreign", "--block", "-1"], "block -1 is not a block's number; count from 0"),
        (["foreign", "--from-library", "saelens"], "cfg.json is not of SAELens 6; load it there and save it again"),
        (["foreign", "--transcoder", "attention"], "is no transcoder; leave the target out"),
        (["foreign", "--transcoder", "attention", "--tensor", "output"], "--tensor is not used with --transcoder"),
        (
            ["tide", "--to", "saelens", "--at-timestep", "1000.5"],
            "timestep 1000.5 is not the scheduler's; give one from",
        ),
        (
            ["tide", "--to", "saelens", "--at-timestep", "-1"],
            "timestep -1 is not the scheduler's; give one from 0 to 1000",
        ),
        (["foreign", "--to", "saelens"], "config.json does not exist; check the path"),
        (["none"], "is not a folder; give the one that another library saved an SAE to"),
    ],
    ids=str,
)
def test_what_is_refused_leaves_nothing(cli, tmp_path, words, message):
    tide_of("topk modulated").save_pretrained(tmp_path / "tide")
    write_foreign(tmp_path / "foreign", "sparsify", "topk")
    result = cli("convert", tmp_path / words[0], *words[1:], "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["names.jsonl", "notes.txt"])
def test_names_of_latents_do_not_travel(cli, tmp_path, file):
    tide_of("topk").save_pretrained(tmp_path / "tide")
    (tmp_path / "tide" / file).write_text("")
    result = cli("convert", tmp_path / "tide", "--to", "saelens", "--out", tmp_path / "out")
    lost = ["names, notes and stars of latents (names.jsonl)"] if file == "names.jsonl" else []
    assert result.out.splitlines()[1:] == [f"Lost: {each}." for each in lost]
    assert contents(tmp_path / "out").configuration["lost"] == lost


def test_a_folder_of_another_library_is_left_alone(cli, tmp_path):
    """dictionary_learning's configuration has the name of a checkpoint's."""
    write_foreign(tmp_path / "in", "sparsify", "topk")
    write_foreign(tmp_path / "out", "dictionary_learning", "AutoEncoder")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result = cli("convert", tmp_path / "in", "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "holds ae.pt already; write to another folder" in result.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name in before} == before


def test_a_checkpoint_is_replaced_by_the_next(cli, tmp_path):
    for seed in (0, 1):
        write_foreign(tmp_path / f"in{seed}", "sparsify", "topk", seed=seed)
        result = cli("convert", tmp_path / f"in{seed}", "--out", tmp_path / "out")
        assert result.code == 0, result.err
    x = rows_apart(function_of(tmp_path / "in1"))
    assert_same(TIDE.from_pretrained(tmp_path / "out").dense(x), function_of(tmp_path / "in1")(x.double()).z)


def test_a_folder_does_not_replace_itself(cli, tmp_path):
    write_foreign(tmp_path, "dictionary_learning", "AutoEncoder")
    result = cli("convert", tmp_path, "--out", f"{tmp_path}/.")
    assert result.code == 2
    assert "is the folder to be converted; write to another one" in result.err
    assert "trainer" in json.loads((tmp_path / "config.json").read_text())

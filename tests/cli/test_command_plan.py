"""`tide plan`: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tide.planning import here

XL = ("plan", "--pipeline", "PixArt-alpha/PixArt-XL-2-1024-MS", "--images", "80000", "--machine", "nvidia-h200")


def test_a_plan_is_printed_and_nothing_is_written(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(*XL, "--block", "all", "--gpus", "8")
    assert (result.code, result.err) == (0, "")
    assert "all 28 blocks: jumprelu of 18432 latents, k = 64, on 40960000 tokens a block in 40000 steps" in result.out
    assert "8 ranks of nvidia-h200" in result.out
    assert "write: 1e+09 B/s (to disk, a rank); ASSUMED: " in result.out
    assert "Formulas:" not in result.out
    assert not list(tmp_path.iterdir())


def test_options_reach_the_plan(cli, tmp_path):
    options = ("--n-latents", "9216", "--k", "32", "--activation", "topk", "--batch-tokens", "4096")
    options += ("--epochs", "2", "--reuse", "2", "--gpus", "4", "--shard-latents", "2")
    kept = ("--token-fraction", "1/4", "--no-pairs", "--batch-size", "16", "--transcoder", "attention")
    machine = ("--size", "512", "--memory", "80GB")
    assert cli(*XL, *options, *kept, *machine, "--formulas", "--out", tmp_path).code == 0
    held = json.loads((tmp_path / "plan.json").read_text())
    work = held["work"]
    names = ("n_latents", "k", "activation", "batch_tokens", "epochs", "reuse", "n_gpus", "shard_latents")
    assert [work[name] for name in names] == [9216, 32, "topk", 4096, 2, 2, 4, 2]
    assert work["pipeline"]["n_tokens"] == 1024
    taken = {"tensor": "attention_input", "target": "attention", "n_timesteps": 20, "token_fraction": 0.25}
    assert work["options"] == {**taken, "paired": False, "batch_size": 16}
    assert held["memory"] == 80e9
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["holds"]["files"] == {"plan.json": "figures"}
    assert run["holds"]["measured"].keys() == {way["name"] for way in held["ways"]}


def test_sizes_in_the_place_of_a_pipeline(cli):
    result = cli(*"plan --d-model 1152 --blocks 28 --tokens 4096 --images 10 --machine nvidia-h200".split())
    assert result.code == 0
    assert "a transformer of 28 blocks, width 1152, 4096 tokens an image" in result.out


def test_this_machine_is_measured(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(here, "_BUDGET", 0.1)
    monkeypatch.setattr(here, "_WRITTEN", 2**20)
    result = cli("plan", "--pipeline", "scenes", "--images", "64", "--n-latents", "96", "--k", "8")
    assert (result.code, result.err) == (0, "")
    assert "1 rank of here" in result.out
    assert "rate: " in result.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [*XL, "--gpus", "0"],
            "--gpus: '0' is not a count; give a whole number, 1 to 2147483647; see",
        ),
        ([*XL[:-1], "h300"], "machine 'h300' is unknown; use here or nvidia-h200"),
        ([*XL, "--shard-latents", "2"], "shard_latents = 2 does not divide 1 GPU; plan a multiple of 2, or leave it"),
        ([*XL, "--block", "28"], "block 28 does not exist; this transformer has blocks 0..27"),
        ([*XL, "--tokens", "3"], "--tokens is not used with --pipeline; leave it off"),
        ([*XL, "--n-latents", "8"], "k = 64 (the default) must lie between 1 and n_latents = 8; lower k or raise"),
        (
            ["plan", "--images", "1"],
            "what is planned is not clear; give --pipeline, or --d-model, --blocks and --tokens",
        ),
        (["plan", "--pipeline", "a/b", "--images", "1"], "the sizes of a/b are not known, and nothing is downloaded"),
        (
            [*XL, "--memory", "1GB"],
            "no way of training fits: even from stores needs 11.7 GB of memory a rank, 10.7 GB more than there is, "
            "most of it for the pipeline; use GPUs with more memory",
        ),
    ],
)
def test_what_is_refused(cli, words, message):
    result = cli(*words)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith(f"tide: error: {message}")

"""The script of the bundled pipeline: its judge, what it records, and mistakes on its command line."""

from __future__ import annotations

import json
import sys

import judge_training
import pytest
import torch
import train_scenes

from tide.scenes import pipeline as bundled
from tide.scenes.judge import load_judge
from tide.scenes.scene import ATTRIBUTES, scenes


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["train_scenes.py", *map(str, words)])
    train_scenes.main()


def test_the_judge_and_what_it_was_trained_with(tmp_path, monkeypatch):
    bundled.build_vae().save_pretrained(tmp_path / "vae")
    monkeypatch.setattr(judge_training, "scenes", lambda split, n, seed: scenes(split, min(n, 12), seed))
    monkeypatch.setattr(judge_training, "JUDGE_SCENES", 12)
    for out in ("a", "b"):
        words = ("judge", "--work", tmp_path, "--out", tmp_path / out, "--steps", 2, "--batch", 8, "--seed", 3)
        run(monkeypatch, *words)
    first, second = ((tmp_path / out / "judge" / "model.safetensors").read_bytes() for out in ("a", "b"))
    assert first == second
    assert len(load_judge(tmp_path / "a" / "judge").read(torch.zeros(2, 3, 64, 64))) == 2
    accuracy = json.loads((tmp_path / "a" / "judge" / "accuracy.json").read_text())
    assert set(accuracy) == {"dev", "test"}
    assert set(ATTRIBUTES) | {"wreckage recognised"} <= set(accuracy["test"])
    recorded = json.loads((tmp_path / "a" / "training.json").read_text())["judge"]
    assert (recorded["seed"], recorded["steps"], recorded["batch"]) == (3, 2, 8)
    assert not recorded["from_earlier_weights"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vae", "--start", "none"], "none/vae holds no VAE; --start is the folder of a pipeline"),
        (["transformer", "--work", "none"], "none/vae holds no VAE; train the stage vae first"),
        (["judge", "--work", "none"], "none/vae holds no VAE; train the stage vae first"),
        (["judge", "--start", "none"], "--start is not used by the judge; leave it off"),
        (["vae", "--steps", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_a_mistake_is_told_in_a_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *words, "--out", "out")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()

"""Every step with a pipeline of videos: clips in, clips out."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image, ImageDraw

from tests.helpers.cli_samples import SMALL
from tests.helpers.families import pipeline, prepared
from tests.helpers.families.wan import build_wan
from tide.cli.app import main
from tide.clip import clip_writer

SIZE = "5x32x32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Wan as a folder, and clips of a square that moves."""
    root = tmp_path_factory.mktemp("video")
    pipeline("wan").save_pretrained(root / "wan")
    (root / "clips").mkdir()
    for number, colour in enumerate(("red", "green", "blue", "white")):
        frames = []
        for i in range(6):
            frame = Image.new("RGB", (32, 32), "grey")
            ImageDraw.Draw(frame).rectangle((4 * i, 8, 4 * i + 8, 16), fill=colour)
            frames.append(frame)
        clip_writer(frames, ".gif")(root / "clips" / f"{number}.gif")
        (root / "clips" / f"{number}.txt").write_text(f"a {colour} cube")
    return root


@pytest.fixture(scope="module")
def trained(folder):
    """Collected from the clips and trained."""
    common = ["--pipeline", folder / "wan"]
    commands = [
        ["collect", *common, "--data", folder / "clips", "--size", SIZE, "--block", 1, "--token-fraction", 1,
         "--hold-out", 0, "--out", folder / "acts"],
        ["train", *common, "--store", folder / "acts", *SMALL, "--steps", 20,
         "--out", folder / "sae"],
    ]  # fmt: skip
    for command in commands:
        assert main([str(each) for each in command]) == 0
    return folder / "sae"


def test_the_store_holds_the_tokens_of_frames_rows_and_columns(folder, trained):
    manifest = json.loads((folder / "acts" / "manifest.json").read_text())
    assert manifest["info"]["size"] == [5, 32, 32]
    # Two frames of latents of 2 x 2 tokens, at a pair of timesteps, of four clips.
    assert sum(shard["rows"] for shard in manifest["shards"]) == 4 * 2 * (2 * 2 * 2)


def test_an_edit_writes_clips_that_move(folder, trained, cli):
    out = folder / "edit"
    found = cli(
        "edit", "--pipeline", folder / "wan", "--sae", trained, "--prompt", "a red cube", "--erase-top", 4,
        "--n-steps", 2, "--size", SIZE, "--out", out,
    )  # fmt: skip
    assert found.code == 0, found.err
    names = sorted(file.name for file in out.iterdir())
    assert "before.webp" in names
    assert "strip.png" in names
    with Image.open(out / "before.webp") as clip:
        assert (clip.n_frames, clip.size) == (5, (32, 32))
    with Image.open(out / "strip.png") as strip:
        assert strip.width > 5 * 32


def test_effects_are_estimated_over_all_frames(folder, trained, cli):
    """At the size asked for, and with the command of the edit that they suggest."""
    out = folder / "effect"
    found = cli(
        "effect", "--pipeline", folder / "wan", "--sae", trained, "--prompt", "a red cube", "--change", "red=blue",
        "--size", SIZE, "--n-steps", 2, "--top", 2, "--points", 1, "--out", out,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert (out / "effects.png").exists()
    assert f"--size {SIZE}" in found.out


@pytest.mark.parametrize("name", ["mask.png", "mask.gif"])
def test_a_mask_is_a_picture_for_all_frames_or_a_clip(folder, trained, cli, name):
    left = Image.new("L", (32, 32))
    left.paste(255, (0, 0, 16, 32))
    dark = Image.new("L", (32, 32))
    if name.endswith("png"):
        left.save(folder / name)
    else:  # the first of two frames of latents alone
        clip_writer([each.convert("RGB") for each in (left, dark, dark, dark, dark)], ".gif")(folder / name)
    out = folder / f"masked-{name}"
    found = cli(
        "edit", "--pipeline", folder / "wan", "--sae", trained, "--prompt", "a red cube", "--erase-top", 4,
        "--n-steps", 2, "--size", SIZE, "--mask", folder / name, "--out", out,
    )  # fmt: skip
    assert found.code == 0, found.err
    assert json.loads((out / "edit.json").read_text())["edits"]


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("4x32x32", "a clip of 4 frames is none that this pipeline's VAE compresses 4 to 1; give 1, or 5"),
        ("5x30x32", "a size of 30 x 32 pixels does not divide into tokens; use multiples of 16"),
        ("9x32x32", "has 6 frames and 9 are needed; give a longer clip, or a size of fewer"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(folder, cli, size, said):
    found = cli(
        "collect", "--pipeline", folder / "wan", "--data", folder / "clips", "--size", size, "--block", 1,
        "--out", folder / "none",
    )  # fmt: skip
    assert found.code != 0
    assert said in found.err
    assert "Traceback" not in found.err


def test_a_size_with_frames_for_a_pipeline_of_images(folder, cli, tmp_path):
    pipeline("sd3").save_pretrained(tmp_path / "sd3")
    found = cli(
        "collect", "--pipeline", tmp_path / "sd3", "--data", folder / "clips", "--size", SIZE, "--block", 1,
        "--out", tmp_path / "none",
    )  # fmt: skip
    assert found.code != 0
    assert "a size of 5 frames of 32 x 32 pixels has frames, and this pipeline draws images" in found.err


def test_the_second_transformer_of_a_pipeline(tmp_path, folder, cli):
    """Collected from and trained by its name; an edit takes that of the checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prepared(build_wan(low_noise=True)).save_pretrained(tmp_path / "wan")
    common = ["--pipeline", tmp_path / "wan"]
    second = ["--component", "transformer_2"]
    collect = ["collect", *common, "--data", folder / "clips", "--size", SIZE, "--block", 1, "--out", tmp_path / "acts"]
    train = ["train", *common, "--store", tmp_path / "acts", *SMALL, "--steps", 4, "--out", tmp_path / "sae"]
    assert cli(*collect, *second).code == 0
    refused = cli(*train)
    assert refused.code == 2
    assert "is of component transformer_2 and" in refused.err
    assert cli(*train, *second).code == 0
    assert json.loads((tmp_path / "sae" / "config.json").read_text())["component"] == "transformer_2"
    edit = ["edit", *common, "--sae", tmp_path / "sae", "--prompt", "a cube", "--erase-top", 4, "--n-steps", 3]
    edit += ["--size", SIZE]
    assert cli(*edit, "--out", tmp_path / "edit").code == 0
    other = cli(*edit, "--component", "transformer", "--out", tmp_path / "other")
    assert other.code == 2
    assert "was trained on the pipeline's transformer_2, and transformer is given" in other.err


def test_live_training_on_clips_draws_its_latents(tmp_path, folder, cli, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    command = ["train", "--pipeline", folder / "wan", "--data", folder / "clips", "--size", SIZE, "--block", 1, *SMALL]
    pytest.importorskip("wandb", reason="a tracker to draw for")
    found = cli(*command, "--steps", 4, "--tracker", "wandb", "--tracker-images", 2, "--out", tmp_path / "live")
    assert found.code == 0, found.err

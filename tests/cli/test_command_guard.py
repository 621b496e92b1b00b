"""``tide guard`` and ``tide edit --guard`` on the bundled pipeline, with few scenes at few steps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tide.adapters import adapter_for
from tide.editing.draw import draw_image
from tide.guards import load_guard
from tide.runs import contents, read_run
from tide.scenes.pipeline import DATA, load_pipeline
from tide.training import TrainConfig, build_model

pytestmark = pytest.mark.skipif(not (DATA / "pipeline").is_dir(), reason="needs the bundled pipeline")


@pytest.fixture(scope="module")
def sae(tmp_path_factory):
    """Untrained: random directions tell a class as well as learnt ones do."""
    adapter = adapter_for(load_pipeline())
    torch.manual_seed(0)
    model = build_model(adapter, 6, TrainConfig(n_latents=512, k=64, activation="relu")).eval()
    folder = tmp_path_factory.mktemp("sae")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("tide.studies.scene_guard.N_SAMPLING_STEPS", 2)
    monkeypatch.setattr("tide.studies.scene_guard.CAPTIONS", 96)


@pytest.mark.usefixtures("few")
def test_a_guard_is_made_shown_and_drawn_under(cli, sae, tmp_path):
    out = tmp_path / "guard"
    words = ["--concept", "tree", "--put", "cube", "--sae", sae, "--pipeline", "scenes", "--images", "96"]
    result = cli("guard", "make", *words, "--out", out)
    assert result.code == 0, result.err
    assert f"The guard is in {out}" in result.out
    made = load_guard(out)
    assert (made.concept, made.put, made.made_for.block) == ("tree", "cube", 6)
    assert made.validated["auroc"]["mean"] > 0.85
    assert made.validated["neutral_caption"] == "a cube"
    assert made.validated["words"]["residual"] < 0.3
    assert (contents(out).kind, read_run(out)["command"]) == ("guard", "guard")

    shown = cli("guard", "show", out)
    assert shown.code == 0
    assert "tree -> cube" in shown.out
    assert shown.out.strip() in result.out

    drawn = tmp_path / "drawn"
    asked = ["--sae", sae, "--pipeline", "scenes", "--prompt", "a green tree, near", "--n-steps", "2"]
    asked += ["--towards", "a green cube, near"]
    result = cli("edit", *asked, "--guard", out, "--out", drawn)
    assert result.code == 0, result.err
    assert "The guard of tree " in result.out
    rows = json.loads((drawn / "edit.json").read_text())["guards"]
    # A row for each of the two pictures; the target was recorded unguarded.
    assert [(row["concept"], row["run"]) for row in rows] == [("tree", 0), ("tree", 1)]

    pair = tmp_path / "pair"
    caption = "a sketched old yellow tree, facing right, far, on sand, with a shadow"
    asked = ["--prompt", caption, "--n-steps", "2", "--guidance", "2"]
    result = cli("guard", "draw", out, *asked, "--pipeline", "scenes", "--out", pair)
    assert result.code == 0, result.err
    assert result.out.startswith("The guard of tree met it in 1 of 1 image")
    assert {path.name for path in pair.iterdir()} == {
        "before.png", "after-guarded.png", "strip.png", "edit.json", "run.json",
    }  # fmt: skip
    report = json.loads((pair / "edit.json").read_text())
    assert report["mean_pixel_change"] > 1
    assert report["guards"][0]["words"]
    assert (contents(pair).kind, read_run(pair)["command"]) == ("edit", "guard")
    adapter = adapter_for(load_pipeline())
    before = draw_image(adapter, caption, n_steps=2, guidance_scale=2.0)
    assert np.array_equal(np.asarray(Image.open(pair / "before.png")), np.asarray(before))


def test_a_guard_is_made_of_captions(cli, sae, tmp_path):
    out = tmp_path / "guard"
    words = ["--concept", "ornate", "--put", "plain", "--sae", sae, "--pipeline", "scenes", "--data", "scenes"]
    few = ["--images", "160", "--images-per-concept", "32", "--timesteps", "2", "--batch-size", "32"]
    result = cli("guard", "make", *words, *few, "--out", out)
    assert result.code == 0, result.err
    made = load_guard(out)
    assert made.validated["images"] == {"fit": 32, "held_out": 32, "with_the_concept": 16}
    assert made.validated["captions"] == 64
    assert contents(out).data["images"] == 64
    assert "ornate -> plain" in result.out


def test_other_pipelines_need_data(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.cli.common.pipeline_of", lambda model, autoencoder: "other")
    words = ["--concept", "tree", "--put", "cube", "--sae", "s", "--out", tmp_path / "guard"]
    result = cli("guard", "make", *words)
    assert result.code == 2
    assert "what to make the guard from is not clear; give --data" in result.err


@pytest.mark.usefixtures("few")
def test_a_concept_that_no_latent_tells_is_refused(cli, sae, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.guards.making.LEAST_AUROC", 1.1)
    words = ["--concept", "tree", "--put", "cube", "--sae", sae, "--pipeline", "scenes", "--images", "96"]
    result = cli("guard", "make", *words, "--out", tmp_path / "guard")
    assert result.code == 2
    assert "no latents of this SAE tell 'tree': AUROC" in result.err
    assert "the nearest is" in result.err
    assert not (tmp_path / "guard").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show"], "no guard is named"),
        (["show", "/none"], "/none holds no guard"),
        (["make"], "--concept is not given"),
        (["make", "/none"], "'/none' is not used by make"),
        (["draw"], "no guard is named; give its folder: tide guard draw GUARD"),
        (["draw", "/none"], "a guard is shown at work on a prompt; give --prompt and --out"),
        (["draw", "/none", "--prompt", "a", "--out", "/tmp/none"], "/none holds no guard"),
        (["paint"], "'paint' is not an action"),
    ],
)
def test_what_is_not_asked_for_rightly(cli, words, message):
    result = cli("guard", *words)
    assert result.code == 2
    assert message in result.err


def test_words_of_two_kinds_are_refused(cli, sae, tmp_path):
    words = ["--concept", "tree", "--put", "plain", "--sae", sae, "--pipeline", "scenes", "--images", "8"]
    result = cli("guard", "make", *words, "--out", tmp_path / "guard")
    assert result.code == 2
    assert "'tree' and 'plain' are not two values of one kind" in result.err

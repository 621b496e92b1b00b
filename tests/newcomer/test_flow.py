"""The README's flow on a newcomer's own pictures and pipelines: the figures are right, and what is said is so."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from tests.helpers.newcomer import COLOURS, colour_of
from tests.helpers.newcomer_flow import tide


def picture(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), float)


def test_collect(flow):
    found = re.search(r"Collected (\d+) activations of (\d+) images from block 1", flow.collect.last)
    rows, images = map(int, found.groups())
    assert rows == images * 2 * 16  # a pair of timesteps, a quarter of 64 tokens
    assert 0.8 * 240 <= images <= 240
    assert "unreadable" not in flow.collect.err


def test_train(flow):
    assert "Trained a TIDE of 256 latents, k = 8, on block 1: 200 steps" in flow.train.out
    explained = float(re.search(r"variance explained +([\d.]+)%", flow.train.out)[1])
    assert explained > 70


def test_evaluate(flow):
    assert flow.evaluate.out
    figures = flow.figures("eval/metrics.json")
    sae, pca = figures["models"]["tide"], figures["models"]["pca_k"]
    assert sae["l0"] == pytest.approx(8, rel=0.1)  # k, on other tokens than the threshold was set on
    assert sae["explained_variance"] > max(0.7, pca["explained_variance"])
    assert figures["diffusion_loss"]["recovered"] > 0.6
    assert f"explains {sae['explained_variance']:.1%} of the variance" in flow.evaluate.last


def test_concepts(flow):
    for word in flow.words:
        assert re.search(rf"^{word} .*\d", flow.concepts.out, re.MULTILINE)
        row = flow.figures("concepts/concepts.json")["concepts"][word]
        assert row["latents"][0]["latent"] == row["latent"]
        assert picture(flow.runs / f"concepts/{word}.png").std() > 10


def test_the_latent_of_a_colour_fires_on_its_ink(pixart_flow):
    """On blue digits it fires, on white around them it does not."""
    assert pixart_flow.concepts
    row = pixart_flow.figures("concepts/concepts.json")["concepts"]["blue"]["latents"][0]
    assert row["with"] > 1.5 * row["without"]


def test_atlas(flow):
    found = re.search(
        r"Of 256 latents on block 1, ([\d.]+) % never fire on (\d+) of the \d+ images of ", flow.atlas.last
    )
    assert 0 < float(found[1]) < 80
    assert int(found[2]) > 0
    assert len((flow.runs / "atlas/atlas.html").read_text()) > 100_000


def test_trajectory(flow):
    assert "Latents of block 1 change" in flow.trajectory.last
    steps = flow.figures("trajectory/trajectory.json")["steps"]
    assert len(steps) == 6
    assert picture(flow.runs / "trajectory/trajectory.png").std() > 10


def test_edit(flow):
    assert flow.edit.out
    half, whole = flow.figures("edit/edit.json")["edits"]
    assert 0 < half["mean_pixel_change"]
    before = picture(flow.runs / "edit/before.png")
    for row in (half, whole):
        after = picture(flow.runs / f"edit/after-{row['strength']:g}.png")
        assert row["mean_pixel_change"] == pytest.approx(np.abs(after - before).mean(), abs=1e-6)
        assert f"{row['mean_pixel_change']:.1f}" in flow.edit.last


def test_the_pipeline_draws_the_colour_that_is_asked_for(pixart_flow):
    """Otherwise nothing here would show an effect of captions."""
    assert pixart_flow.edit
    assert colour_of(Image.open(pixart_flow.runs / "edit/before.png")) in ("blue", "purple")
    assert "blue" in COLOURS


def test_an_edit_from_blue_to_red_takes_blue_away(pixart_flow):
    assert pixart_flow.edit

    def redness(name: str) -> float:
        pixels = picture(pixart_flow.runs / f"edit/{name}.png")
        return float((pixels[..., 0] - pixels[..., 2]).mean())

    assert redness("after-1") > redness("before") + 10


def test_a_word_that_no_caption_holds(flow):
    said = tide(
        *("concepts", "--pipeline", flow.pipeline, "--sae", flow.sae, "--data", flow.pictures),
        *("--concepts", "octopus", "--fast", "--out", flow.runs / "octopus"),
    )
    assert said.code == 2
    assert len(said.err.strip().splitlines()) == 1
    assert "'octopus'" in said.err
    assert not (flow.runs / "octopus").exists()


def test_another_familys_checkpoint(pixart_flow, dit_flow):
    said = tide(
        *("edit", "--pipeline", dit_flow.pipeline, "--sae", pixart_flow.sae, "--prompt", "seven"),
        *("--scale", "3=2", "--out", dit_flow.runs / "wrong"),
    )
    assert said.code == 2
    assert "was trained on family 'pixart', not 'dit'" in said.err

"""What a newcomer must be told: what was held out, what a figure means, what had no effect, and what to try."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.newcomer import digits, save_digits
from tests.helpers.newcomer_flow import tide


def flat(said) -> str:
    return f"{said.out}\n{said.err}"


# -- what trained the checkpoint --------------------------------------------------------------------------


def test_collect_holds_pictures_out(flow):
    images = int(re.search(r"of (\d+) images", flow.collect.last)[1])
    assert 240 * 0.8 < images < 240
    assert re.search(r"held[ -]out|hold[s]? out|reserve", flat(flow.collect))


def test_evaluate_measures_the_pictures_that_were_held_out(flow):
    assert "held-out images" in flow.evaluate.last
    collected = int(re.search(r"of (\d+) images", flow.collect.last)[1])
    images = flow.figures("eval/metrics.json")["images"]
    assert images["measured"] >= 5
    assert images["fit"] + images["measured"] == 240 - collected


def trained_on(pictures, pipeline, out, *options) -> list:
    """Trains live for a moment, and evaluates on the same folder; what both commands were told of it."""
    data = ("--pipeline", pipeline, "--data", pictures)
    small = ("--steps", 10, "--timesteps", 4, "--buffer-rows", 512, "--set", "n_latents=128", "k=8", "batch_tokens=256")
    said = [tide("train", *data, *options, *small, "--out", out / "tide")]
    loss = ("--images", 60, "--loss-images", 2, "--loss-timesteps", 1)
    return [*said, tide("evaluate", *data, "--sae", out / "tide", *loss, "--out", out / "eval")]


def test_training_images_are_not_called_held_out(pixart, tmp_path):
    save_digits(tmp_path / "few", digits(1))
    train, evaluate = trained_on(tmp_path / "few", pixart, tmp_path, "--hold-out", 0)
    assert (train.code, evaluate.code) == (0, 0), train.err + evaluate.err
    assert "training images" in flat(evaluate)
    assert "held-out images" not in evaluate.last


def test_images_beyond_those_that_trained_are_held_out(pixart, tmp_path):
    save_digits(tmp_path / "few", digits(1))
    train, evaluate = trained_on(tmp_path / "few", pixart, tmp_path, "--hold-out", 0, "--images", 30)
    assert (train.code, evaluate.code) == (0, 0), train.err + evaluate.err
    assert "held-out images" in evaluate.last
    images = json.loads((tmp_path / "eval/metrics.json").read_text())["images"]
    assert images["fit"] + images["measured"] == 30


# -- what the figures mean --------------------------------------------------------------------------------


def test_the_loss_is_shown_clean_reconstructed_and_zeroed(flow):
    for word in ("clean", "reconstruct", "zero"):
        assert word in flow.evaluate.out.lower()
    loss = flow.figures("eval/metrics.json")["diffusion_loss"]
    assert loss["recovered"] <= 1


def test_concepts_have_a_score_with_its_interval(flow):
    for word in flow.words:
        row = next(line for line in flow.concepts.out.splitlines() if line.startswith(word))
        assert re.search(r"([01]\.\d+.*){3}", row), row
        found = flow.figures("concepts/concepts.json")["concepts"][word]
        assert 0 <= found["interval"][0] <= found["auroc"] <= found["interval"][1] <= 1


def test_a_colour_is_found_at_least_as_well_as_a_digit(pixart_flow):
    """The pipeline hardly knows forms after so short a training."""
    assert pixart_flow.concepts
    rows = pixart_flow.figures("concepts/concepts.json")["concepts"]
    assert rows["blue"]["interval"][0] > 0.5
    assert rows["blue"]["auroc"] >= rows["seven"]["auroc"]


def test_what_was_examined_is_named(pixart_flow, tmp_path):
    said = tide(
        *("concepts", "--pipeline", pixart_flow.pipeline, "--sae", pixart_flow.sae, "--data", pixart_flow.pictures),
        *("--images", 12, "--concepts", "octopus", "--out", tmp_path / "x"),
    )
    assert said.code == 2
    assert re.search(r"\b12 of the \d+ images", said.err)


# -- edits ------------------------------------------------------------------------------------------------


def test_it_is_said_that_a_latent_was_inactive(pixart_flow, tmp_path):
    from tide import TIDE

    model = TIDE.from_pretrained(pixart_flow.sae)
    with torch.no_grad():
        model.b_enc[3] = -1e4
    model.save_pretrained(tmp_path / "tide")
    said = tide(
        *("edit", "--pipeline", pixart_flow.pipeline, "--sae", tmp_path / "tide", "--prompt", "a blue seven"),
        *("--scale", "3=5.0", "--n-steps", 4, "--out", tmp_path / "edit"),
    )
    assert said.code == 0
    assert re.search(r"\b3\b.*(inactive|never|not active)", flat(said))


def test_a_search_names_blocks_and_steps_to_try(pixart_flow, tmp_path):
    said = tide(
        *("edit", "--pipeline", pixart_flow.pipeline, "--sae", pixart_flow.sae, "--prompt", "a blue seven"),
        *("--change", "blue=red", "--n-steps", 4, "--search", "--out", tmp_path / "search"),
    )
    assert said.code == 0, said.err
    assert re.search(r"--steps [\d.]+ [\d.]+", said.out)


def test_a_strip_is_large_and_labelled(flow):
    assert flow.edit
    with Image.open(flow.runs / "edit/strip.png") as strip:
        assert strip.height > 64 + 12
        assert strip.width > 3 * 64 * 2


def test_the_atlas_shows_captions_names_and_colour(flow):
    assert flow.atlas
    page = (flow.runs / "atlas/atlas.html").read_text()
    shown = [each for each in digits(4) if Path(each.name).name in page]
    assert shown
    if "blue" in flow.prompt:
        assert all(each.caption in page for each in shown)


# -- a DiT whose classes have no names --------------------------------------------------------------------


def test_it_is_said_that_diffusers_dropped_the_labels(unnamed_dit, classes, tmp_path):
    said = tide("collect", "--pipeline", unnamed_dit, "--data", classes, "--out", tmp_path / "acts")
    assert said.code == 2
    assert len(said.err.strip().splitlines()) == 1
    assert "id2label" in said.err or "model_index.json" in said.err
    assert "diffusers" in said.err


def test_classes_by_number_need_no_names(unnamed_dit, tmp_path):
    import tide as package

    adapter = package.load_adapter(str(unnamed_dit))
    assert adapter.encode_prompts(["7", ""])["class_labels"].tolist() == [7, 1000]
    assert np.isfinite(adapter.d_model)
    with pytest.raises(package.TideError, match="'seven' is not a class"):
        adapter.encode_prompts(["seven"])

"""What a newcomer must be told: what was held out, what a figure means, what had no effect, and what to try."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.newcomer import digits
from tests.helpers.newcomer_flow import tide
from tide.interpretation.atlas import Atlas


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
    assert sum(flow.figures("eval/metrics.json")["images"].values()) <= 240 - collected


def test_training_images_are_not_called_held_out(pixart_flow, tmp_path):
    common = ("--pipeline", pixart_flow.pipeline, "--data", pixart_flow.pictures)
    small = ("--set", "n_latents=128", "k=8", "batch_tokens=256")
    said = tide("train", *common, "--images", 64, "--hold-out", 0, "--steps", 20, *small, "--out", tmp_path / "tide")
    assert said.code == 0, said.err
    options = ("--sae", tmp_path / "tide", "--images", 240, "--fast", "--out", tmp_path / "eval")
    assert "held-out" in tide("evaluate", *common, *options).last  # the other 176
    said = tide("train", *common, "--hold-out", 0, "--steps", 20, *small, "--out", tmp_path / "all")
    said = tide("evaluate", *common, "--sae", tmp_path / "all", "--fast", "--out", tmp_path / "all-eval")
    assert said.code == 0, said.err
    assert "training images" in flat(said)
    assert "held-out images" not in said.last


# -- what the figures mean --------------------------------------------------------------------------------


def test_the_loss_is_shown_clean_reconstructed_and_zeroed(flow):
    for word in ("clean", "reconstruct", "zero"):
        assert word in flow.evaluate.out.lower()
    loss = flow.figures("eval/metrics.json")["diffusion_loss"]
    assert loss["recovered"] <= 1


def test_concepts_have_a_score_with_its_interval(flow):
    for word in flow.words:
        row = next(line for line in flow.concepts.out.splitlines() if line.startswith(word))
        assert re.search(r"0\.\d+.*0\.\d+.*0\.\d+", row), row
        assert 0.5 <= flow.figures("concepts/concepts.json")["concepts"][word]["auroc"] <= 1


def test_a_colour_scores_better_than_a_digit(pixart_flow):
    """The pipeline hardly knows forms after so short a training."""
    assert pixart_flow.concepts
    rows = pixart_flow.figures("concepts/concepts.json")["concepts"]
    assert rows["blue"]["auroc"] > rows["seven"]["auroc"]


def test_what_was_examined_is_named(pixart_flow, tmp_path):
    said = tide(
        *("concepts", "--pipeline", pixart_flow.pipeline, "--sae", pixart_flow.sae, "--data", pixart_flow.pictures),
        *("--images", 12, "--concepts", "octopus", "--out", tmp_path / "x"),
    )
    assert said.code == 2
    assert re.search(r"\b12 of the \d+ images", said.err)


# -- edits ------------------------------------------------------------------------------------------------


def test_it_is_said_that_a_latent_was_inactive(pixart_flow, tmp_path):
    assert pixart_flow.atlas
    dead = int(torch.nonzero(Atlas.load(pixart_flow.runs / "atlas").dead)[0])
    said = tide(
        *("edit", "--pipeline", pixart_flow.pipeline, "--sae", pixart_flow.sae, "--prompt", "a blue seven"),
        *("--scale", f"{dead}=5.0", "--n-steps", 4, "--out", tmp_path / "edit"),
    )
    assert said.code == 0
    assert re.search(rf"\b{dead}\b.*(inactive|never|not active)", flat(said))


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

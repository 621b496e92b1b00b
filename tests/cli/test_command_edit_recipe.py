"""`tide edit --recipe` draws the changes that a file lists."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

import tide
from tide.fingerprint import fingerprint
from tide.runs import contents, read_run

RECIPE = tide.Recipe(
    "a red house",
    (tide.Change((1, 2), "add", 9.0), tide.Change((3,), "scale", 2.0, steps=(0.5, 1.0), tokens=(0, 5))),
    seed=3,
    n_steps=2,
    guidance_scale=2.0,
    branch="both",
)
FILES = {"before.png", "after-recipe.png", "strip.png", "edit.json"}


@pytest.fixture
def edit(cli, checkpoint, tmp_path):
    """Saves a recipe and runs it; the result, and the folder."""

    def run(recipe: tide.Recipe, *options: object):
        recipe.save(tmp_path / "recipe.json")
        words = ["--sae", checkpoint, "--recipe", tmp_path / "recipe.json", *options]
        return cli("edit", *words, "--out", tmp_path / "out"), tmp_path / "out"

    return run


@pytest.mark.filterwarnings("ignore:the recipe's change")
def test_the_pictures_are_those_of_the_library(edit, pipeline, checkpoint):
    adapter = tide.load_adapter(pipeline, device="cpu")
    sae = tide.load_sae(checkpoint, adapter)
    recipe = replace(RECIPE, sae=fingerprint([sae]))
    result, out = edit(recipe, "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    drawn = tide.draw_recipe(adapter, sae, recipe)
    assert tuple(Image.open(out / f"{name}.png").copy() for name in ("before", "after-recipe")) == drawn
    assert drawn[0] != drawn[1]
    assert result.out.splitlines()[-1].startswith("Edited block 6 by 2 changes: pixels moved by ")


def test_what_the_folder_holds(edit):
    result, out = edit(RECIPE)
    assert result.code == 0
    report = json.loads((out / "edit.json").read_text())
    assert tide.Recipe.from_dict(report["recipe"]) == RECIPE
    (row,) = report["edits"]
    assert row["mean_pixel_change"] > 0
    assert [group["latents"] for group in row["groups"]] == [[1, 2], [3]]
    assert [group["edited_tokens"] for group in row["groups"]] == [2 * 2 * 64, 2 * 2]
    holds, run = contents(out), read_run(out)
    assert holds is not None
    assert run is not None
    assert (holds.kind, holds.blocks, holds.data) == ("edit", [6], {"prompt": "a red house"})
    assert set(holds.files) == FILES
    assert holds.configuration == RECIPE.to_dict()
    assert (run["seed"], run["arguments"]["prompt"]) == (3, "a red house")


def test_what_changed_nothing_is_said(edit):
    result, _ = edit(replace(RECIPE, changes=(tide.Change((3,), "scale", 1.0),)))
    assert "Nothing changed by changing latent 3: a factor of 1 changes nothing." in result.out


def test_no_changes(edit):
    result, out = edit(replace(RECIPE, changes=()))
    assert (result.code, result.err) == (0, "")
    assert Image.open(out / "before.png") == Image.open(out / "after-recipe.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae": "0" * 16}, "the recipe names latents of the SAE 0000000000000000 and this is "),
        ({"changes": (tide.Change((96,), "add", 1.0),)}, "feature 96 does not exist; this SAE has latents 0..95"),
        ({"changes": (tide.Change((1,), "add", 1.0, tokens=(64,)),)}, "token 64 does not exist; the image has tokens "),
    ],
)
def test_a_recipe_that_does_not_fit(edit, changes, message):
    result, out = edit(replace(RECIPE, **changes))
    assert result.code == 2
    assert result.err.startswith(f"tide: error: {message}")
    assert result.err.count("\n") == 1
    assert not out.exists()


def test_a_file_that_is_no_recipe(cli, checkpoint, tmp_path):
    words = ["edit", "--sae", checkpoint, "--out", tmp_path / "out", "--recipe"]
    assert cli(*words, tmp_path / "none").err == f"tide: error: {tmp_path}/none does not exist; check the path\n"
    (tmp_path / "list").write_text("[]")
    assert cli(*words, tmp_path / "list").err.startswith(
        f"tide: error: {tmp_path}/list: it is [] and must be an object"
    )
    assert not (tmp_path / "out").exists()


def test_the_prompt_stays_required_without_a_recipe(cli):
    words = ["edit", "--sae", "s", "--out", "o"]
    assert cli(*words, "--erase", "1").err == "tide: error: required: --prompt; see `tide edit --help`\n"
    assert cli(*words, "--recipe", "r", "--prompt", "near").err == (
        "tide: error: --prompt is not used with --recipe; leave it off\n"
    )
    assert "are not allowed together" in cli(*words, "--recipe", "r", "--erase", "1").err

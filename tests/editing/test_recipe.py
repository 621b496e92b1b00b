"""Recipes as files, and what is wrong with damaged ones and with those that do not fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.helpers.edit_samples import N
from tide.editing import Add, Change, Recipe, Scale, Where, WhereLatents
from tide.errors import TideError
from tide.fingerprint import fingerprint

RECIPE = Recipe(
    "a red house, near — “naïve”",
    (
        Change((3, 7), "scale", 2.5, where=WhereLatents((4, 5), 0.5, grow=1, smooth=2, hold=0.8)),
        Change((5,), "add", -1.0, (0.25, 1.0), (0, 9)),
    ),
    seed=4,
    n_steps=8,
    guidance_scale=2.0,
    size=(64, 64),
    branch="both",
    renormalise=True,
    sae="0123456789abcdef",
)


def test_a_file_holds_the_recipe(tmp_path):
    path = tmp_path / "recipe.json"
    for recipe in (RECIPE, Recipe("a tree", ())):
        recipe.save(path)
        assert Recipe.load(path) == recipe == Recipe.from_dict(recipe.to_dict())
    assert json.loads(path.read_text())["format"] == "tide-recipe/1"


def test_fields_with_defaults_may_be_missing():
    data = {"format": "tide-recipe/1", "prompt": "a tree", "changes": [{"latents": [1], "how": "add", "by": 2}]}
    assert Recipe.from_dict(data) == Recipe("a tree", (Change((1,), "add", 2.0),))


def test_edits_of_changes():
    scale, plus = (change.edit() for change in RECIPE.changes)
    assert scale == Scale((3, 7), 2.5)
    assert plus == Add((5,), -1.0)


def test_masks_of_changes():
    assert RECIPE.changes[0].mask(64) is None
    mask = RECIPE.changes[1].mask(64)
    assert mask is not None
    assert mask.nonzero().flatten().tolist() == [0, 9]
    assert (mask.dtype, mask.shape) == (torch.bool, (64,))


def test_places_of_changes(sae):
    """Tokens alone are a mask; latents draw one, within the tokens if there are any."""
    drawn, painted = RECIPE.changes
    assert painted.mask(64).equal(painted.places(sae, 64))
    assert Change((1,), "add", 1.0).places(sae, 64) is None
    place = drawn.places(sae, 64)
    assert isinstance(place, Where)
    assert (place.grow, place.smooth, place.low, place.within) == (1, 2, 0.8, None)
    (detector,) = place.detectors
    assert (detector.features.tolist(), detector.threshold(500.0)) == ([4, 5], 0.5)
    within = replace(painted, where=drawn.where).places(sae, 64).within
    assert within.equal(painted.mask(64))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", "tide-recipe/2", "has the format 'tide-recipe/2' and not 'tide-recipe/1'; make it again"),
        ("format", None, "format is missing"),
        ("format", 3, "format is 3 and must be text"),
        ("prompt", None, "prompt is missing"),
        ("prompt", 3, "prompt is 3 and must be text"),
        ("prompt", " \n", "the prompt is empty; say what to draw"),
        ("prompt", "x" * 10_001, "the prompt has 10001 letters; give at most 10000"),
        ("prompt", "\ud800", "is not UTF-8 text"),
        ("changes", None, "changes is missing"),
        ("changes", {}, "changes is {} and must be a list"),
        ("changes.0", [], "changes[0] is [] and must be an object"),
        ("changes.0.latents", None, "changes[0].latents is missing"),
        ("changes.0.latents", [], "latents is empty; name at least one"),
        ("changes.0.latents", [1, -2], "latents has -2; they are counted from 0"),
        ("changes.0.latents", [1, True], "changes[0].latents[1] is True and must be a whole number"),
        ("changes.0.how", "erase", "changes[0].how is 'erase' and must be 'scale' or 'add'"),
        ("changes.0.by", math.nan, "changes[0].by is nan and must be a finite number"),
        ("changes.0.by", 1e39, "by = 1e+39 is not a finite number"),
        ("changes.0.tokens", [], "tokens is empty; name at least one, or leave it off for all"),
        ("changes.0.tokens", [-1], "tokens has -1; they are counted from 0"),
        ("changes.0.steps", [0.5, 0.5], "steps = (0.5, 0.5) must be two fractions"),
        ("changes.0.steps", [0.5, 1.5], "steps = (0.5, 1.5) must be two fractions"),
        ("changes.0.steps", [0.5], "changes[0].steps is [0.5] and must be a list of 2 or null"),
        ("changes.0.step", [0.5, 1.0], "has the unknown field 'step'; use latents, how, by, steps, tokens, where"),
        ("changes.1.where", [1], "changes[1].where is [1] and must be an object or null"),
        ("changes.1.where", {}, "changes[1].where.latents is missing"),
        ("changes.0.where.threshold", "x", "changes[0].where.threshold is 'x' and must be a finite number"),
        ("changes.0.where.latents", [], "where.latents is empty; name at least one"),
        ("changes.0.where.latents", [-1], "where.latents has -1; they are counted from 0"),
        ("changes.0.where.threshold", 1e39, "where.threshold = 1e+39 is not a finite number"),
        ("changes.0.where.grow", -1, "where.grow = -1 and where.smooth = 2 are tokens; give 0 or more"),
        ("changes.0.where.hold", 1.5, "where.hold = 1.5 is a share of the threshold; give 0 to 1"),
        ("changes.0.where.grows", 1, "changes[0].where has the unknown field 'grows'; use latents, threshold, grow"),
        ("seeds", 1, "has the unknown field 'seeds'; use format, prompt, changes, seed"),
        ("seed", -1, "seed = -1 must be 0 to 4294967295"),
        ("n_steps", 0, "n_steps = 0 must be at least 1"),
        ("guidance_scale", math.inf, "guidance_scale is inf and must be a finite number"),
        ("size", [64, 0], "size = (64, 0) must be a height and a width of at least 1 pixel"),
        ("branch", "none", "branch is 'none' and must be"),
        ("renormalise", 1, "renormalise is 1 and must be true or false"),
        ("sae", 3, "sae is 3 and must be text or null"),
    ],
)
def test_damage(tmp_path, path, value, message):
    """One line that names the file and the fault; None leaves the entry out."""
    data = RECIPE.to_dict()
    *places, last = [int(place) if place.isdecimal() else place for place in path.split(".")]
    at = data
    for place in places:
        at = at[place]
    if value is None:
        del at[last]
    else:
        at[last] = value
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(data))
    with pytest.raises(TideError) as error:
        Recipe.load(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 10**5])
def test_files_that_hold_no_recipe(tmp_path, text):
    file = tmp_path / "recipe.json"
    file.write_text(text)
    with pytest.raises(TideError, match=r"is not valid JSON|must be an object"):
        Recipe.load(file)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Change((1,), "erase", 0.0), "how = 'erase' is unknown"),
        (lambda: Change((1,), "add", math.inf), "by = inf is not a finite number"),
        (lambda: Change((1,), "add", 1.0, where={"latents": [1]}), "where is a dict; give a tide.WhereLatents"),
        (lambda: Recipe("a", (), branch="none"), "branch = 'none' is unknown"),
        (lambda: Recipe("a", (), guidance_scale=math.nan), "guidance_scale = nan is not a finite number"),
    ],
)
def test_values_from_python(make, message):
    with pytest.raises(TideError, match=message):
        make()


def test_a_recipe_that_fits(adapter, sae):
    replace(RECIPE, sae=fingerprint([sae])).check(sae, adapter)
    replace(RECIPE, sae=None).check(sae, adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "the recipe names latents of the SAE 0123456789abcdef and this is"),
        ({"sae": None, "changes": (Change((N,), "add", 1.0),)}, f"feature {N} does not exist"),
        ({"sae": None, "changes": (Change((1,), "add", 1.0, tokens=(3, 64)),)}, "token 64 does not exist; .* 0..63"),
        (
            {"sae": None, "changes": (Change((1,), "add", 1.0, where=WhereLatents((N,))),)},
            f"feature {N} does not exist",
        ),
        (
            {"sae": None, "changes": (Change((1,), "add", 1.0, where=WhereLatents((2**70,))),)},
            f"feature {2**70} does not exist",
        ),
        ({"sae": None, "changes": (Change((1,), "add", 1.0, steps=(0.9, 1.0)),)}, "holds none of the 8 sampling steps"),
        ({"sae": None, "n_steps": 10_000}, "10000 sampling steps asked for"),
        ({"sae": None, "size": (65, 64)}, "65 x 64 pixels does not divide into tokens"),
    ],
)
def test_a_recipe_that_does_not_fit(adapter, sae, changes, message):
    with pytest.raises(TideError, match=message):
        replace(RECIPE, **changes).check(sae, adapter)

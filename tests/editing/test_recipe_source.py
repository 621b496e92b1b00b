"""Source and shell lines that draw a recipe."""

from __future__ import annotations

import shlex

import pytest
from PIL import Image

import tide
from tide.cli.app import command
from tide.editing import Change, Recipe, WhereLatents, draw_recipe, recipe_code, recipe_command
from tide.fingerprint import fingerprint

PROMPT = "a red house,\n'near' — {seed} \\ \"there\""


@pytest.mark.parametrize("changes", [(), (Change((1, 2), "add", 30.0),), None])
def test_the_code_draws_the_recipe(alpha, sae, tmp_path, monkeypatch, changes):
    """As it stands, in a folder of its own; also names and prompts with quotes in them."""
    monkeypatch.chdir(tmp_path)
    pipeline, checkpoint = "it's the pipeline", 'the "SAE"'
    alpha.save_pretrained(pipeline)
    sae.save_pretrained(checkpoint)
    several = (Change((3,), "scale", 0.1), Change((1,), "add", 40.0, steps=(0.5, 1.0), tokens=(0, 9)))
    several += (Change((2,), "add", 9.0, where=WhereLatents((1, 4), grow=1)),)
    recipe = Recipe(
        PROMPT, several if changes is None else changes, seed=4, n_steps=2, guidance_scale=2.0, sae=fingerprint([sae])
    )
    code = recipe_code(recipe, checkpoint, pipeline)
    names: dict[str, object] = {}
    exec(compile(code, "recipe.py", "exec"), names)
    assert names["recipe"] == recipe
    adapter = tide.load_adapter(pipeline)
    drawn = draw_recipe(adapter, tide.load_sae(checkpoint, adapter), recipe)
    assert tuple(Image.open(f"{name}.png").copy() for name in ("before", "after")) == drawn
    assert (drawn[0] == drawn[1]) == (not recipe.changes)


def test_only_what_differs_from_the_defaults_is_said():
    recipe = Recipe("a tree", (Change((1,), "add", 1.0),), seed=2)
    assert recipe_code(recipe, "runs/tide", "scenes") == (
        "import tide\n\n"
        'adapter = tide.load_adapter("scenes")\n'
        'sae = tide.load_sae("runs/tide", adapter)\n'
        "recipe = tide.Recipe(\n"
        '    prompt="a tree",\n'
        "    changes=(\n"
        '        tide.Change(latents=(1,), how="add", by=1.0),\n'
        "    ),\n"
        "    seed=2,\n"
        ")\n"
        "before, after = tide.draw_recipe(adapter, sae, recipe)\n"
        'before.save("before.png")\n'
        'after.save("after.png")\n'
    ).replace('"', "'").replace("'before.png'", '"before.png"').replace("'after.png'", '"after.png"')


@pytest.mark.parametrize("path", ["recipe.json", "my recipe's.json", "-x", "$HOME"])
def test_the_command_names_the_files(path):
    words = shlex.split(recipe_command(path, "runs/a b", out="o"))
    asked = command(words[1:])
    assert words[0] == "tide"
    assert (asked.name, asked.recipe, asked.autoencoder.sae, asked.out) == ("edit", path, "runs/a b", "o")
    assert recipe_command("recipe.json", "runs/tide") == (
        "tide edit --recipe=recipe.json --sae=runs/tide --out=runs/recipe"
    )

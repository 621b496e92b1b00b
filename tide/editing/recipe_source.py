"""A recipe as Python source and as a shell line that draw it."""

from __future__ import annotations

import shlex
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from tide.editing.recipe import Recipe

_CODE = """\
import tide

adapter = tide.load_adapter({pipeline!r})
sae = tide.load_sae({checkpoint!r}, adapter)
recipe = {recipe}
before, after = tide.draw_recipe(adapter, sae, recipe)
before.save("before.png")
after.save("after.png")
"""


def recipe_code(recipe: Recipe, checkpoint: str, pipeline: str) -> str:
    """Python source that draws the recipe with the SAE in the folder ``checkpoint`` and the ``pipeline``, a name or a
    folder, and saves before.png and after.png in the current folder. Fields with their defaults are left out."""
    return _CODE.format(pipeline=pipeline, checkpoint=checkpoint, recipe=_recipe(recipe))


def recipe_command(path: str | Path, checkpoint: str | Path, out: str | Path = "runs/recipe") -> str:
    """The shell line that draws the recipe in the file ``path`` into the folder ``out``.

    ``checkpoint`` is the folder of the autoencoder whose latents it names.
    """
    words = ["tide", "edit", f"--recipe={path}", f"--sae={checkpoint}", f"--out={out}"]
    return shlex.join(words)


def _recipe(recipe: Recipe) -> str:
    given = _given(recipe)
    changes = [f"        {_call(each)},\n" for each in recipe.changes]
    given["changes"] = f"(\n{''.join(changes)}    )" if changes else "()"
    return "tide.Recipe(\n" + "".join(f"    {name}={value},\n" for name, value in given.items()) + ")"


def _given(values: Any) -> dict[str, str]:
    """The fields of a dataclass that differ from their defaults, as source; those without a default always."""
    found = {each.name: (getattr(values, each.name), each.default) for each in fields(values)}
    return {name: _source(value) for name, (value, default) in found.items() if default is MISSING or value != default}


def _source(value: Any) -> str:
    return _call(value) if is_dataclass(value) else repr(value)


def _call(values: Any) -> str:
    """What makes a dataclass again."""
    return f"tide.{type(values).__name__}({', '.join(f'{name}={value}' for name, value in _given(values).items())})"

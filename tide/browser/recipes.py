"""Recipes that were saved in a run's folder, and what a recipe is as a program and as a command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tide.browser.runs import Run
from tide.editing import Recipe
from tide.editing.recipe_source import recipe_code, recipe_command
from tide.errors import TideError
from tide.images.identity import digest
from tide.messages import one_line

FOLDER = "recipes"
_NAME = re.compile(r"[\w](?:[\w .-]{0,78}[\w])?")
#: Bytes of a name at most: its file's name, while that is written, has at most 255.
MOST_BYTES = 160
#: What no file on Windows can be called, with whatever ending.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
#: Within :data:`FOLDER`: recipes whose command was copied, by their digests, so that no later one takes a file's place.
COPIED = "copied"


class Recipes:
    """The recipes of a run."""

    def __init__(self, run: Run) -> None:
        self.run, self.folder = run, run.folder / FOLDER

    def path(self, name: str) -> Path:
        """The file of a recipe. Raises :class:`~tide.errors.TideError` for a name that is not one of a file."""
        if not _NAME.fullmatch(name) or ".." in name:
            raise TideError(f"{one_line(name, 60)!r} cannot name a recipe; use letters, digits, spaces, - and _")
        if len(name.encode()) > MOST_BYTES or name.partition(".")[0].strip().lower() in _RESERVED:
            raise TideError(f"{one_line(name, 60)!r} cannot name a file on every system; choose another name")
        return self.folder / f"{name}.json"

    def all(self) -> list[dict[str, Any]]:
        """Every recipe by name; of one that cannot be read, why."""
        found = []
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []:
            try:
                found.append({"name": path.stem, "recipe": Recipe.load(path).to_dict()})
            except TideError as error:
                found.append({"name": path.stem, "message": str(error)})
        return found

    def save(self, name: str, recipe: Recipe) -> dict[str, Any]:
        """Writes a recipe in place of an earlier one of its name."""
        path = self.path(name)
        self.folder.mkdir(exist_ok=True)
        recipe.save(path)
        return {"name": name, "path": str(path)}

    def code(self, recipe: Recipe) -> dict[str, str]:
        """The recipe as Python and as a command, which reads it from a file that this writes."""
        if self.run.checkpoint is None:
            raise TideError(f"the checkpoint of {self.run.name} is not here; give its folder to tide browse")
        checkpoint = str(self.run.checkpoint.resolve())
        path = (self.folder / COPIED / f"{digest(json.dumps(recipe.to_dict()))}.json").resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe.save(path)
        return {
            "python": recipe_code(recipe, checkpoint, self.run.pipeline),
            "command": recipe_command(str(path), checkpoint),
        }

"""A recipe drawn: its prompt without an edit, and with all of its changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

from PIL.Image import Image

from tide.adapters import Adapter
from tide.adapters.sizes import image_size, n_tokens
from tide.editing.change import Change
from tide.editing.context import edit
from tide.editing.draw import check_branch, draw_image
from tide.editing.edits import Compose
from tide.editing.met import Met
from tide.editing.previews import OnStep, watched
from tide.editing.recipe import Recipe
from tide.errors import TideWarning
from tide.sae.model import TIDE

#: Gets the changes of equal steps and places that were made as one, and what they met.
OnMet = Callable[[tuple[Change, ...], Met], None]


def draw_recipe(
    adapter: Adapter,
    model: TIDE,
    recipe: Recipe,
    *,
    before: bool = True,
    on_step: OnStep | None = None,
    on_step_before: OnStep | None = None,
    on_met: OnMet | None = None,
) -> tuple[Image | None, Image]:
    """Draws a recipe without its changes and with them, from the same noise.

    Consecutive changes of equal steps, tokens and ``where`` are applied to the same latents, one after the other. Where
    they differ, the next change reads the latents again, those that tell it where, too, from what the one before made
    of the activations. A recipe without changes draws the unedited image twice, with the same bits.

    Args:
        adapter: the pipeline.
        model: the TIDE whose latents are changed, on the pipeline's device.
        recipe: what is drawn.
        before: draw the unedited image, too.
        on_step: called after each sampling step of the edited drawing with the step, counted from 0, the number of
            steps, and the clean latents ``[1, c, h, w]`` that the step predicts (:func:`~tide.editing.watched`). An
            exception that it raises ends the drawing and passes through.
        on_step_before: the same of the unedited drawing.
        on_met: called once the edited image is drawn with each group of changes that were applied to the same latents,
            and what they met; default a warning (:class:`~tide.errors.TideWarning`) about changes that change nothing
            or name inactive latents.

    Returns:
        The unedited image, None unless ``before``, and the edited one.

    Raises:
        TideError: the recipe does not fit the model or the pipeline (:meth:`Recipe.check`); nothing of the run is of
            its branch; what is drawn is not finite.
    """
    recipe.check(model, adapter)
    size = image_size(adapter, recipe.size)
    run: dict[str, Any] = {"n_steps": recipe.n_steps, "guidance_scale": recipe.guidance_scale, "seed": recipe.seed}
    draw = partial(draw_image, adapter, recipe.prompt, **run, size=size)
    unedited = _watching(adapter, on_step_before, size, draw) if before else None
    with ExitStack() as stack:
        made = []
        for group in groups(recipe):
            edits = tuple(each.edit() for each in group)
            change = edits[0] if len(edits) == 1 else Compose(edits)
            options: dict[str, Any] = {"branch": recipe.branch, "renormalise": recipe.renormalise, "warns": False}
            tokens = group[0].places(model, n_tokens(adapter, size))
            met = stack.enter_context(edit(adapter.pipe, model, change, steps=group[0].steps, tokens=tokens, **options))
            made.append((group, met))
        edited = _watching(adapter, on_step, size, draw)
    for group, met in made:
        check_branch(met)
        (on_met or _warn)(group, met)
    return unedited, edited


def groups(recipe: Recipe) -> list[tuple[Change, ...]]:
    """The changes in order, consecutive ones of equal steps and places together."""

    def place(change: Change) -> tuple[Any, ...]:
        tokens, where = change.tokens, change.where
        return (
            change.steps or (0.0, 1.0),
            None if tokens is None else frozenset(tokens),
            None if where is None else (frozenset(where.latents), replace(where, latents=(0,))),
        )

    return [tuple(group) for _, group in groupby(recipe.changes, place)]


def _watching(adapter: Adapter, on_step: OnStep | None, size: tuple[int, ...], draw: Callable[[], Image]) -> Image:
    if on_step is None:
        return draw()
    with watched(adapter, on_step, size=size):
        return draw()


def _warn(group: tuple[Change, ...], met: Met) -> None:
    if met.remark is not None:
        latents = ", ".join(dict.fromkeys(str(latent) for change in group for latent in change.latents))
        warnings.warn(f"the recipe's change of {latents}: {met.remark}", TideWarning, stacklevel=3)

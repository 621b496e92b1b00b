"""Recipes drawn: the bits of the calls that they stand for, and drawings that are watched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.edit_samples import SILENT, N, hooks_of
from tide.editing import Add, Change, Recipe, Scale, Where, WhereLatents, draw_edits, draw_latents, draw_recipe, edit
from tide.editing.recipe_drawing import groups
from tide.errors import TideError, TideWarning
from tide.pictures import to_image

RUN = {"n_steps": 3, "guidance_scale": 2.0, "seed": 4}
PROMPT = "a red house"
HALF = tuple(range(32))
ALL = tuple(range(N - 60, N))
SCALED, ADDED = Change(ALL, "scale", 3.0), Change((SILENT,), "add", 40.0)
LATE = Change((1, 2), "add", 20.0, (0.5, 1.0), HALF)
FIRING = WhereLatents(ALL, 12.0, grow=1)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (SCALED, {}),
        (ADDED, {"branch": "both"}),
        (LATE, {"renormalise": True}),
    ],
)
def test_one_change_has_the_bits_of_an_edit(adapter, sae, change, options):
    tokens = None if change.tokens is None else torch.arange(64) < 32
    before, after = draw_edits(
        adapter, sae, PROMPT, {"it": change.edit()}, steps=change.steps, tokens=tokens, **RUN, **options
    )
    assert draw_recipe(adapter, sae, Recipe(PROMPT, (change,), **RUN, **options)) == (before, after["it"])
    assert before != after["it"]


def test_a_change_where_latents_fire_has_the_bits_of_a_where(adapter, sae):
    """Not everywhere, not nowhere, and within its tokens."""
    where = Where.of_features(sae, ALL, 12.0, grow=1, within=torch.arange(64) < 32)
    change = replace(SCALED, where=FIRING, tokens=HALF)
    _, after = draw_edits(adapter, sae, PROMPT, {"it": SCALED.edit()}, tokens=where, **RUN)
    met = []
    recipe = Recipe(PROMPT, (change,), **RUN)
    _, drawn = draw_recipe(adapter, sae, recipe, on_met=lambda group, found: met.append(found))
    assert drawn == after["it"]
    assert 0 < met[0].tokens < 3 * 32


def test_no_changes_draw_the_unedited_image(adapter, sae):
    before, _ = draw_edits(adapter, sae, PROMPT, {}, **RUN)
    assert draw_recipe(adapter, sae, Recipe(PROMPT, (), **RUN)) == (before, before)


def test_without_the_unedited_image(adapter, sae):
    recipe = Recipe(PROMPT, (SCALED,), **RUN)
    assert draw_recipe(adapter, sae, recipe, before=False) == (None, draw_recipe(adapter, sae, recipe)[1])


def test_consecutive_changes_of_one_place_are_one_edit(adapter, sae):
    _, after = draw_edits(adapter, sae, PROMPT, {"both": Scale(ALL, 3.0) + Add((SILENT,), 40.0)}, **RUN)
    assert draw_recipe(adapter, sae, Recipe(PROMPT, (SCALED, ADDED), **RUN))[1] == after["both"]


def test_changes_of_several_places_are_nested_edits(adapter, sae):
    """The first change is the outer context, and the block's output passes through it first."""
    _, drawn = draw_recipe(adapter, sae, Recipe(PROMPT, (SCALED, LATE), **RUN))
    tokens = torch.arange(64) < 32
    with (
        edit(adapter.pipe, sae, SCALED.edit()),
        edit(adapter.pipe, sae, LATE.edit(), steps=LATE.steps, tokens=tokens),
    ):
        latents = draw_latents(adapter, PROMPT, **RUN)
    assert drawn == to_image(adapter.decode_latents(latents)[0])
    _, one = draw_recipe(adapter, sae, Recipe(PROMPT, (SCALED,), **RUN))
    assert drawn != one


def test_groups():
    same = replace(LATE, tokens=HALF[::-1], by=3.0)
    whole = replace(SCALED, steps=(0.0, 1.0))
    firing = replace(ADDED, where=FIRING)
    turned = replace(ADDED, where=replace(FIRING, latents=ALL[::-1]))
    higher = replace(ADDED, where=replace(FIRING, threshold=16.0))
    recipe = Recipe(PROMPT, (SCALED, whole, LATE, same, ADDED, firing, turned, higher))
    assert groups(recipe) == [(SCALED, whole), (LATE, same), (ADDED,), (firing, turned), (higher,)]


def test_an_added_latent_was_inactive(adapter, sae):
    """Scaling it changes nothing, and says so; adding to it does."""
    with pytest.warns(TideWarning, match=f"the recipe's change of {SILENT}: .* nothing was edited") as told:
        before, scaled = draw_recipe(adapter, sae, Recipe(PROMPT, (Change((SILENT,), "scale", 40.0),), **RUN))
    assert before == scaled
    assert {each.filename for each in told if each.category is TideWarning} == {__file__}
    assert draw_recipe(adapter, sae, Recipe(PROMPT, (ADDED,), **RUN))[1] != before


def test_another_size_has_other_tokens(adapter, sae):
    """32 x 64 pixels are 4 x 8 tokens, and the latents shown are of that size."""
    change, shapes = Change(ALL, "scale", 3.0, tokens=(0, 31)), []
    recipe = Recipe(PROMPT, (change,), size=(32, 64), **RUN)
    _, drawn = draw_recipe(
        adapter, sae, recipe, before=False, on_step=lambda step, n_steps, clean: shapes.append(list(clean.shape))
    )
    tokens = torch.zeros(32, dtype=torch.bool)
    tokens[[0, 31]] = True
    _, after = draw_edits(adapter, sae, PROMPT, {"it": change.edit()}, size=(32, 64), tokens=tokens, **RUN)
    assert (drawn, drawn.size) == (after["it"], (64, 32))
    assert shapes == [[1, 4, 8, 16]] * 3
    with pytest.raises(TideError, match="token 32 does not exist"):
        draw_recipe(adapter, sae, replace(recipe, changes=(replace(change, tokens=(32,)),)))


def test_what_each_group_met(adapter, sae):
    met = []
    recipe = Recipe(PROMPT, (SCALED, ADDED, LATE), **RUN)
    draw_recipe(adapter, sae, recipe, before=False, on_met=lambda group, found: met.append((group, found)))
    assert [group for group, _ in met] == [(SCALED, ADDED), (LATE,)]
    assert [found.tokens for _, found in met] == [3 * 64, 1 * 32]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ((Change((N,), "scale", 2.0),), {}, f"feature {N} does not exist"),
        ((SCALED,), {"guidance_scale": 1.0, "branch": "unconditional"}, "no unconditional rows at these steps"),
        ((Change(tuple(range(N)), "scale", 3e38),), {}, "is not finite; lower the edit's strength"),
    ],
)
def test_what_does_not_fit(adapter, sae, changes, options, message):
    with pytest.raises(TideError, match=message):
        draw_recipe(adapter, sae, Recipe(PROMPT, changes, **{**RUN, **options}))
    assert hooks_of(adapter.pipe) == 0


def test_both_drawings_can_be_watched(adapter, sae):
    """Watching changes no bit; the last step's clean latents are those that are drawn."""
    seen: dict[str, list] = {"before": [], "after": []}
    recipe = Recipe(PROMPT, (SCALED, LATE), **RUN)
    drawn = draw_recipe(
        adapter,
        sae,
        recipe,
        on_step=lambda *step: seen["after"].append(step),
        on_step_before=lambda *step: seen["before"].append(step),
    )
    assert drawn == draw_recipe(adapter, sae, recipe)
    for steps in seen.values():
        assert [(step, n) for step, n, _ in steps] == [(0, 3), (1, 3), (2, 3)]
        assert all(clean.shape == (1, 4, 16, 16) for _, _, clean in steps)
    last = [to_image(adapter.decode_latents(steps[-1][2])[0]) for steps in seen.values()]
    assert tuple(last) == drawn


def test_a_drawing_can_be_ended(adapter, sae):
    class Ended(Exception):
        pass

    def end(step: int, n_steps: int, clean: torch.Tensor) -> None:
        steps.append(step)
        if step == 1:
            raise Ended

    _, before = draw_recipe(adapter, sae, Recipe(PROMPT, (), **RUN))
    steps: list[int] = []
    with pytest.raises(Ended):
        draw_recipe(adapter, sae, Recipe(PROMPT, (SCALED, LATE), **RUN), before=False, on_step=end)
    assert steps == [0, 1]
    assert hooks_of(adapter.pipe) == 0
    assert "step" not in vars(adapter.pipe.scheduler)
    assert draw_recipe(adapter, sae, Recipe(PROMPT, (), **RUN))[1] == before

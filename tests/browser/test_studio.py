"""Drawing for the page: the events of a drawing, the bits of its images, and what ends it in the middle."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.answers import ended, images, opened, same
from tests.helpers.edit_samples import hooks_of
from tests.helpers.here import steering_here
from tide.browser.runs import find_runs
from tide.browser.studio import KEPT, Studio, stronger
from tide.editing import Change, Recipe, draw_recipe
from tide.errors import TideError

ALL = tuple(range(6, 96))
SCALED, ADDED = Change(ALL, "scale", 3.0), Change((5,), "add", 40.0, (0.5, 1.0), tuple(range(32)))
RECIPE = Recipe("a red house", (SCALED, ADDED), n_steps=3, guidance_scale=2.0, seed=4)


@pytest.fixture
def run(made):
    (found,) = find_runs([made])
    return found


def drawn(steering, run, recipe=RECIPE, strengths=(1.0,)) -> list[dict]:
    """The events of a drawing, all of them."""
    return ended(steering.jobs.submit(lambda job: steering.draw(run, recipe, strengths, job)))


def test_events_in_order(steering, run):
    events = drawn(steering, run)
    assert [(each["event"], each.get("which"), each.get("step")) for each in events] == [
        ("loading", None, None),
        ("step", "before", 1),
        ("step", "before", 2),
        ("image", "before", None),
        ("step", "after", 1),
        ("step", "after", 2),
        ("image", "after", None),
        ("done", None, None),
    ]
    steps = [each for each in events if each["event"] == "step"]
    assert {each["of"] for each in steps} == {3}
    assert all(opened(each["jpeg"]).format == "JPEG" for each in steps)


def test_previews_come_to_look_like_the_image(steering, run):
    events = drawn(steering, run, replace(RECIPE, n_steps=8, changes=()))
    image = np.asarray(images(events)["before", 0].resize((16, 16), Image.Resampling.BOX), dtype=float)
    away = [
        np.abs(np.asarray(opened(each["jpeg"]), dtype=float) - image).mean()
        for each in events
        if each["event"] == "step"
    ]
    assert away[-1] < away[0]


def test_the_images_are_those_of_the_recipe(steering, run, bundled, model):
    found = images(drawn(steering, run))
    before, after = draw_recipe(bundled, model, RECIPE)
    assert same(found["before", 0], before)
    assert same(found["after", 0], after)
    assert not same(before, after)


def test_a_row_of_strengths(steering, run, bundled, model):
    events = drawn(steering, run, strengths=(0.0, 0.5, 1.0, -1.0))
    found = images(events)
    assert same(found["after", 0], found["before", 0])
    for i, strength in enumerate((0.5, 1.0, -1.0), 1):
        changes = tuple(stronger(each, strength) for each in RECIPE.changes)
        assert same(found["after", i], draw_recipe(bundled, model, replace(RECIPE, changes=changes), before=False)[1])
    assert [each["strength"] for each in events if each.get("which") == "after" and each["event"] == "image"] == [
        0.0, 0.5, 1.0, -1.0,
    ]  # fmt: skip
    assert not same(found["after", 1], found["after", 2])


def test_strengths_of_a_change():
    assert stronger(SCALED, 1) is SCALED
    assert [stronger(SCALED, s).by for s in (0, 0.5, 2)] == [1, 2, 5]
    assert [stronger(ADDED, s).by for s in (0, 0.5, -1)] == [0, 20, -40]


def test_a_recipe_without_changes_is_drawn_once(steering, run):
    events = drawn(steering, run, replace(RECIPE, changes=()))
    assert [each["event"] for each in events] == ["loading", "step", "step", "image", "image", "done"]
    found = images(events)
    assert same(found["before", 0], found["after", 0])


def test_the_unedited_image_is_drawn_once(steering, run):
    first = drawn(steering, run)
    again = drawn(steering, run, replace(RECIPE, changes=(Change((9,), "add", 30.0),), branch="both"))
    assert not [each for each in again if each["event"] == "step" and each["which"] == "before"]
    assert same(images(first)["before", 0], images(again)["before", 0])


@pytest.mark.parametrize(
    "other", [{"seed": 5}, {"prompt": "a blue cone"}, {"n_steps": 4}, {"guidance_scale": 3.0}, {"size": (64, 32)}]
)
def test_another_drawing_has_another_unedited_image(steering, run, other):
    plain = replace(RECIPE, changes=())
    first, again = drawn(steering, run, plain), drawn(steering, run, replace(plain, **other))
    assert [each for each in again if each["event"] == "step" and each["which"] == "before"]
    assert not same(images(first)["before", 0], images(again)["before", 0])


def test_so_many_unedited_images_are_kept(bundled):
    studio = Studio(lambda run: bundled)
    for i in range(KEPT + 3):
        studio._keep(i, None)
    assert list(studio._plain) == list(range(3, KEPT + 3))


@pytest.mark.parametrize("which", ["before", "after"])
def test_cancelled_within_a_step(steering, run, bundled, model, which):
    """The step that runs is the last; no hook is left, and the next drawing has the right bits."""
    recipe = replace(RECIPE, n_steps=8)
    steps = []

    def draw(job) -> None:
        tell = job.tell

        def telling(kind, **said) -> None:
            if kind == "step" and said["which"] == which:
                steps.append(said["step"])
                steering.jobs.cancel(job)
            tell(kind, **said)

        job.tell = telling
        steering.draw(run, recipe, (1.0,), job)

    assert ended(steering.jobs.submit(draw))[-1] == {"event": "cancelled"}
    assert steps == [1]
    assert hooks_of(bundled.pipe) == 0
    assert same(images(drawn(steering, run))["after", 0], draw_recipe(bundled, model, RECIPE, before=False)[1])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no kernel"), "the pipeline failed (RuntimeError: no kernel); draw again"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the memory is used up; draw a smaller image"),
        (TideError("it cannot; choose another"), "it cannot; choose another"),
    ],
)
def test_a_pipeline_that_raises_in_the_middle(steering, run, bundled, model, monkeypatch, error, message):
    calls = []
    decode = bundled.pipe.vae.decode

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return decode(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(bundled.pipe.vae, "decode", failing)
        events = drawn(steering, run)
    assert [kind for kind, _ in groupby(each["event"] for each in events)] == [
        "loading", "step", "image", "step", "failed",
    ]  # fmt: skip
    assert events[-1]["message"].startswith(message)
    assert hooks_of(bundled.pipe) == 0
    assert same(images(drawn(steering, run))["after", 0], draw_recipe(bundled, model, RECIPE, before=False)[1])


def test_a_change_that_changes_nothing_is_remarked_on(steering, run):
    silent = Change((5,), "scale", 4.0)
    said = [each["remark"] for each in drawn(steering, run, replace(RECIPE, changes=(silent,))) if "remark" in each]
    assert len(said) == 1
    assert said[0].startswith("The change of 5: ")
    assert "latent 5 was inactive" in said[0]
    assert [
        each["remark"] for each in drawn(steering, run, replace(RECIPE, changes=(SCALED,))) if "remark" in each
    ] == [None]


def test_an_adapter_is_loaded_once_and_again_after_a_failure(jobs, run, bundled):
    loads = []

    def load(run):
        loads.append(run.name)
        if len(loads) == 1:
            raise TideError("it is not there; check the path")
        return bundled

    steering = steering_here(jobs, load)
    assert drawn(steering, run)[-1] == {"event": "failed", "message": "it is not there; check the path"}
    assert [drawn(steering, run)[-1]["event"] for _ in range(2)] == ["done", "done"]
    assert len(loads) == 2


def test_warming_loads_what_a_drawing_needs(jobs, run, bundled):
    loads = []
    steering = steering_here(jobs, lambda run: (loads.append(run), bundled)[1])
    assert [each["event"] for each in ended(steering.warm(run))] == ["done"]
    drawn(steering, run)
    assert len(loads) == 1


def test_what_does_not_fit_is_said(steering, run):
    for recipe, message in [
        (replace(RECIPE, sae="0" * 16), "the recipe is of another autoencoder than this run's; open the run"),
        (replace(RECIPE, changes=(replace(ADDED, tokens=(64,)),)), "token 64 does not exist"),
        (replace(RECIPE, size=(63, 64)), "size"),
        (replace(RECIPE, n_steps=10**6), "steps"),
        (replace(RECIPE, changes=(Change(ALL, "scale", 3e38),)), "is not finite; lower the edit's strength"),
    ]:
        event = drawn(steering, run, recipe)[-1]
        assert event["event"] == "failed"
        assert message in event["message"], event


def test_a_strength_beyond_every_number(steering, run):
    event = drawn(steering, run, strengths=(1e300,))[-1]
    assert (event["event"], "is not a finite number" in event["message"]) == ("failed", True)


def test_an_index_of_other_weights(steering, folder, model):
    """The checkpoint was trained on since: the numbers of the index name other latents."""
    other = deepcopy(model)
    with torch.no_grad():
        other.b_dec.add_(1.0)
    other.save_pretrained(folder)
    (run,) = find_runs([folder])
    event = drawn(steering, run)[-1]
    assert "of other weights than its checkpoint; start tide browse --index" in event["message"]


def test_without_a_checkpoint(bundled, run):
    run.checkpoint = None
    with pytest.raises(TideError, match="the checkpoint of tide is not here; give its folder"):
        Studio(lambda run: bundled).model(run)

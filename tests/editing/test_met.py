"""What an edit met in a run, and what is said of one that changed nothing or names latents that are inactive."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch

from tests.helpers.edit_samples import BLOCK, SILENT, STEPS, K, N, Watch, draw, make_sae
from tide.editing import (
    Add,
    Contrast,
    Erase,
    Inject,
    Invert,
    Keep,
    PerImage,
    Replace,
    Scale,
    ScaleTarget,
    Steer,
    SteerTowards,
    Strength,
    Swap,
    Target,
    draw_edits,
    edit,
    prompt_target,
)
from tide.errors import TideWarning

TOKENS = 64 * STEPS
NOW = torch.tensor([500.0])
TARGET = Target(NOW, torch.rand(1, N, generator=torch.Generator().manual_seed(0)))
NOTHING = Target(NOW, torch.zeros(1, N))
ONLY_SILENT = Target(NOW, torch.eye(N)[SILENT][None])
EVERYTHING = Erase(range(N))


class Sees(Watch):
    """Counts, as it runs, on how many tokens each latent is active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[int] = Counter()

    def latents(self, z, place):
        self.seen.update(z.nonzero()[:, 1].tolist())
        return super().latents(z, place)


def said(alpha, sae, change, **options) -> list[str]:
    """The warnings of a run under an edit."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with edit(alpha, sae, change, **options):
            draw(alpha)
    return [str(w.message) for w in told if w.category is TideWarning]


def test_counts(alpha, sae):
    """Of tokens, of those that changed, and of the tokens on which each latent that is named was active."""
    watch = Sees()
    with edit(alpha, sae, watch + Scale([SILENT, 20], 3.0), warns=False) as met:
        draw(alpha)
    assert met.active == {SILENT: 0, 20: watch.seen[20]}
    assert met.fired.tolist() == [watch.seen[latent] for latent in range(N)]
    assert (met.tokens, met.moved, met.changed) == (TOKENS, watch.seen[20], watch.seen[20])
    assert 0 < met.moved < TOKENS
    assert met.inactive == [SILENT]
    most = watch.seen.most_common(5)
    assert sorted(met.fired_most.values()) == sorted(count / TOKENS for _, count in most)
    assert met.nothing is None


def test_latents_of_a_target(alpha, sae):
    """Those that it holds at any step, counted as the named ones are."""
    target = Target(torch.tensor([500.0, 1.0]), torch.zeros(2, N))
    target.values[0, [SILENT, 20]] = torch.tensor([2.0, 1.0])
    target.values[1, 30] = 1.0
    for change, latents in ((ScaleTarget(target, 1, 3.0), {SILENT, 30}), (Swap(target, target), {SILENT, 20, 30})):
        with edit(alpha, sae, Strength(PerImage((change,)) + Keep(K), 1.0), warns=False) as met:
            draw(alpha)
        assert met.target_active == {latent: int(met.fired[latent]) for latent in latents}
        assert met.target_active[SILENT] == 0 < met.target_active[30]
        assert met.active == {}


def test_the_size_of_a_change(alpha):
    """Relative to the activations, over all edited tokens; of a direction as long as these it is by hand."""
    with edit(alpha, None, Steer(NOW, torch.zeros(1, 192)), block=BLOCK, warns=False) as met:
        draw(alpha)
    assert met.change_of_norm == 0
    with edit(alpha, None, SteerTowards(NOW, torch.zeros(1, 192), 0.5), block=BLOCK, steps=(0.5, 1)) as met:
        draw(alpha)
    assert met.change_of_norm == pytest.approx(0.5)
    assert (met.tokens, met.moved, met.active) == (TOKENS // 2, TOKENS // 2, {})


NO_OPS = {
    "factor 1": (Scale([20], 1.0), {}, "a factor of 1 changes nothing"),
    "strength 0": (Strength(EVERYTHING, 0.0), {}, "strength 0 is no edit"),
    "a silent latent scaled": (Scale([SILENT], 9.0), {}, f"latent {SILENT} was inactive on all edited tokens; most "),
    "nothing added": (Add([20], 0.0), {}, "an amount of 0 changes nothing"),
    "a silent latent lowered": (Add([SILENT], -9.0), {}, f"latent {SILENT} was inactive on all edited tokens; most"),
    "added to no latent": (Add([], 9.0), {}, "it names no latent"),
    "a silent latent erased": (Erase([SILENT]), {}, f"latent {SILENT} was inactive on all edited tokens; most often"),
    "a silent latent inverted": (Invert([SILENT]), {}, f"latent {SILENT} was inactive"),
    "part of the way": (Strength(Erase([SILENT]), 0.5), {}, f"latent {SILENT} was inactive"),
    "nothing named": (Erase([]), {}, "it names no latent"),
    "replaced not at all": (Replace(TARGET, 0.0), {}, "a factor of 0 changes nothing"),
    "nothing injected": (Inject(NOTHING), {}, "the target has no active latent"),
    "injected not at all": (Inject(TARGET, 0.0), {}, "a factor of 0 changes nothing"),
    "target scaled by 1": (ScaleTarget(TARGET, 3, 1.0), {}, "a factor of 1 changes nothing"),
    "a silent target scaled": (ScaleTarget(ONLY_SILENT, 3, 4.0), {}, "the target's strongest latents were inactive"),
    "swapped not at all": (Swap(TARGET, ONLY_SILENT, 0.0), {}, "a factor of 0 changes nothing"),
    "what is not there swapped": (Swap(ONLY_SILENT, NOTHING), {}, "no token holds the source's latents or the target"),
    "no contrast": (Contrast(TARGET, TARGET), {}, "the two targets are the same"),
    "contrast at 0": (Contrast(TARGET, NOTHING, 0.0), {}, "a factor of 0 changes nothing"),
    "as many kept as there are": (Keep(K), {}, f"no token has more than {K} active latents"),
    "a sum": (Contrast(TARGET, TARGET) + Keep(K), {}, f"the two targets are the same; no token has more than {K} act"),
    "an edit an image": (PerImage((Erase([SILENT]),)), {}, f"latent {SILENT} was inactive"),
    "there and back": (Scale([20], 2.0) + Scale([20], 0.5), {}, "the edit leaves the latents of this run as they are"),
    "of one's own": (Watch(), {}, "the edit leaves the latents of this run as they are"),
    "renormalised": (
        Scale(range(N), 3.0),
        {"renormalise": True},
        "its change is undone by renormalising, or too small",
    ),
    "an empty mask": (EVERYTHING, {"tokens": torch.zeros(64, dtype=torch.bool)}, "the mask covers none of the image's"),
    "between two steps": (
        EVERYTHING,
        {"steps": (0.26, 0.49)},
        "none of its 4 calls of the block was of the steps 0.26",
    ),
    "a branch there is not": (EVERYTHING, {"branch": "unconditional"}, "its 4 calls of the block had no unconditional"),
}


@pytest.mark.parametrize("name", NO_OPS)
def test_an_edit_that_changes_nothing_says_why(alpha, sae, name):
    change, options, reason = NO_OPS[name]
    if name == "renormalised":  # of one active latent a token
        sae = make_sae(alpha, BLOCK)
        sae.config = type(sae.config)(**{**vars(sae.config), "k": 1})
        change = Scale(range(N), 2.0)  # a factor that rounds nothing
    (message,) = said(alpha, sae, change, **options)
    assert message.startswith(f"the pipeline ran and nothing was edited: {reason}")


def test_an_edit_towards_what_the_image_is(adapter, alpha, sae):
    """Its own recording."""
    run = {"n_steps": STEPS, "guidance_scale": 1.0, "seed": 3}
    target = prompt_target(adapter, sae, "a red cube", **run)
    with pytest.warns(TideWarning, match="edit 'a': the pipeline ran and nothing was edited: the target's latents are"):
        before, after = draw_edits(adapter, sae, "a red cube", {"a": Replace(target)}, **run)
    assert after["a"] == before


def test_steering_by_nothing(alpha):
    for change, reason in (
        (Steer(NOW, torch.ones(1, 192), 0.0), "a factor of 0 changes nothing"),
        (Steer(NOW, torch.zeros(1, 192)), "the direction is zero"),
    ):
        assert said(alpha, None, change, block=BLOCK) == [f"the pipeline ran and nothing was edited: {reason}"]


def test_some_latents_that_are_inactive(alpha, sae):
    """Though others are changed; the latents most often active are named with their share of the tokens."""
    change = Scale([SILENT, 20], 3.0)
    (message,) = said(alpha, sae, change)
    with edit(alpha, sae, change, warns=False) as met:
        draw(alpha)
    start = f"latent {SILENT} was inactive on all edited tokens; most often active there: "
    assert message.startswith(start)
    listed = [each.split(" (") for each in message.removeprefix(start).split(", ")]
    assert {int(latent): share for latent, share in listed} == {
        latent: f"{share:.0%})" for latent, share in met.fired_most.items()
    }


def test_nothing_is_said_of_an_edit_that_works(alpha, sae):
    assert said(alpha, sae, EVERYTHING) == []
    assert said(alpha, sae, Erase([20])) == []
    assert said(alpha, sae, Add([SILENT], 9.0)) == []
    assert said(alpha, sae, Add([SILENT], 9.0) + Scale([20], 2.0) + Scale([SILENT], 2.0)) == []
    assert said(alpha, sae, ScaleTarget(TARGET, 3, 3.0)) == []


def test_draw_edits_says_it_of_each(adapter, sae):
    edits = {"a": Scale([SILENT], 2.0), "b": EVERYTHING, "c": Strength(EVERYTHING, 0.0)}
    run = {"n_steps": 2, "guidance_scale": 1.0}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        draw_edits(adapter, sae, "a tree", edits, **run)
    messages = [str(w.message) for w in told if w.category is TideWarning]
    assert [message[:8] for message in messages] == ["edit 'a'", "edit 'c'"]
    assert {w.filename for w in told if w.category is TideWarning} == {__file__}
    met = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", TideWarning)
        draw_edits(adapter, sae, "a tree", edits, **run, on_met=met.__setitem__)
    assert [each.moved > 0 for each in met.values()] == [False, True, False]

"""Guards in the pipelines of every family: the refuge, several guards, edits inside, several images of a prompt."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.helpers.families import CORE, adapter, draw, hooks_of
from tests.helpers.guards import ALWAYS, NEVER, detector, made_for, refuge, words
from tide.adapters import tap
from tide.editing import Scale, edit
from tide.guards import Guard, guard
from tide.guards.words import mask_name
from tide.sae import TIDE
from tide.training import TrainConfig, build_model

#: Those that are given text; DiT is given classes.
READING = [name for name in CORE if name != "dit"]
BLOCK = 1


@cache
def sae_of(name: str) -> TIDE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(
            adapter(name), BLOCK, TrainConfig(n_latents=64, k=4, modulation=False, activation="relu")
        ).eval()


def width_of(name: str) -> int:
    return adapter(name).encode_prompts(["a red house"])["encoder_hidden_states"].shape[-1]


def guard_for(name: str, threshold: float, concept: str = "house", **parts) -> Guard:
    own = {"words": words(width_of(name)), **parts}
    return Guard(concept, "tree", detector(sae_of(name), threshold), made_for(adapter(name), BLOCK), **own)


def text_met(name: str, *guards: Guard, inside=None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What is drawn under guidance, the prompt's text at each call, and the image tokens behind the block as the
    adapter finds them."""
    texts, tokens, own = [], [], adapter(name)

    def before(arguments, conditional, timestep):
        if conditional.any():
            texts.append(arguments["encoder_hidden_states"][conditional].clone())

    with guard(own.pipe, *guards), tap(own, {BLOCK: lambda x, call: tokens.append(x.clone())}, before=before):
        return draw(name, guided=True), texts, tokens


@pytest.mark.parametrize("name", READING)
def test_in_the_refuge_image_tokens_are_still_found(name):
    """Also where the text's length says where they are (Lumina 2)."""
    own, outside = guard_for(name, ALWAYS, refuge=refuge(width_of(name), 6), patience=1), []
    with tap(adapter(name), {BLOCK: lambda x, call: outside.append(x.clone())}):
        found, texts, inside = text_met(name, own)
    assert torch.isfinite(found).all()
    assert torch.equal(texts[2][:, :6], own.refuge.states.expand(2, -1, -1))
    assert all(torch.equal(*pair) for pair in zip(outside, inside, strict=True)), "a tap outside finds the same tokens"


@pytest.mark.parametrize("name", ["pixart", "sana", "lumina2", "lumina_next", "hunyuan", "prx"])
def test_the_mask_of_the_text_is_the_refuges_too(name):
    """Under the name that the family gives it."""
    own, seen = guard_for(name, ALWAYS, refuge=refuge(width_of(name), 4), patience=1), []

    def watch(arguments, conditional, timestep):
        if conditional.any():
            mask = arguments[mask_name(arguments)]
            seen.append(mask.bool().sum(1)[conditional].tolist())

    with guard(adapter(name).pipe, own), tap(adapter(name), {}, before=watch):
        draw(name, guided=True)
    assert seen[0] != [4, 4]
    assert seen[2] == [4, 4]


@pytest.mark.parametrize("name", READING)
def test_two_guards_are_one_after_the_other(name):
    one = guard_for(name, ALWAYS)
    two = guard_for(name, ALWAYS, "ornate", words=words(width_of(name), scale=-0.3))
    with guard(adapter(name).pipe, one, two) as log:
        together = draw(name, guided=True)
    _, texts, _ = text_met(name, one, two)
    assert [each.words for each in log] == [[1, 2]] * 4
    assert torch.allclose(texts[1], two.words(one.words(texts[0])), atol=1e-5)
    assert torch.isfinite(together).all()
    assert hooks_of(adapter(name).pipe) == 0


@pytest.mark.parametrize("name", READING)
def test_edits_nest_with_guards_on_either_side(name):
    """An edit of the prompt's rows meets the same rows with a guard around it and inside it, and a guard that flags
    nothing changes nothing of the edit."""
    pipe, sae = adapter(name).pipe, sae_of(name)
    change = Scale(range(64), 3.0)
    with edit(pipe, sae, change):
        wanted = draw(name, guided=True)
    quiet, loud = guard_for(name, NEVER), guard_for(name, ALWAYS)
    with guard(pipe, quiet), edit(pipe, sae, change):
        assert torch.equal(draw(name, guided=True), wanted)
    with edit(pipe, sae, change), guard(pipe, quiet):
        assert torch.equal(draw(name, guided=True), wanted)
    with guard(pipe, loud), edit(pipe, sae, change):
        within = draw(name, guided=True)
    with edit(pipe, sae, change), guard(pipe, loud):
        around = draw(name, guided=True)
    assert torch.equal(within, around), "words are mapped at once, whatever the scores"
    assert not torch.equal(within, wanted)


@pytest.mark.parametrize("name", ["pixart", "flux"])
def test_several_images_of_a_prompt_are_guarded_one_by_one(name):
    own, pipe = guard_for(name, ALWAYS), adapter(name).pipe
    plain = {"height": 32, "width": 32, **adapter(name).call_defaults}
    with guard(pipe, own) as log:
        for n in (3, 1):
            pipe("a red house", num_images_per_prompt=n, num_inference_steps=2, output_type="latent", **plain)
    assert [(each.run, each.image) for each in log] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert {tuple(each.words) for each in log} == {(1,)}


@pytest.mark.parametrize("name", ["pixart", "lumina2"])
def test_a_run_that_breaks_leaves_nothing_behind(name):
    own, pipe = guard_for(name, ALWAYS), adapter(name).pipe
    plain = draw(name, guided=True)

    def broken(*_):
        raise RuntimeError("stop")

    with guard(pipe, own) as log:
        with pytest.raises(RuntimeError, match="stop"), tap(adapter(name), {2: broken}):
            draw(name, guided=True)
        draw(name, guided=True)
    assert [each.words for each in log if each.run == 1] == [[1, 2]] * 2, "the second run is no part of the first"
    assert torch.equal(draw(name, guided=True), plain)
    assert hooks_of(pipe) == 0


@pytest.mark.parametrize("name", READING)
def test_the_map_that_is_always_on_leaves_the_negative_prompt_alone(name):
    """Also of what a context inside of it takes for the prompt's rows."""
    pipe, rows = adapter(name).pipe, []

    def watch(arguments, conditional, timestep):
        rows.append(conditional.tolist())

    with tap(adapter(name), {}, before=watch):
        draw(name, guided=True)
    wanted = rows.copy()
    rows.clear()
    with words(width_of(name)).always(pipe), tap(adapter(name), {}, before=watch):
        draw(name, guided=True)
    assert rows == wanted

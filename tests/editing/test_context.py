"""Edits installed in a real pipeline: which rows, tokens and steps they reach, and that they leave no trace."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import PixArtAlphaPipeline

import tide.editing.context as context
from tests.helpers.edit_samples import (
    BLOCK,
    SILENT,
    STEPS,
    N,
    Watch,
    assert_untouched,
    draw,
    hooks_of,
    make_sae,
    recorded,
)
from tide.adapters import adapter_for, tap
from tide.adapters.guidance import watch_guidance
from tide.editing import Edit, Erase, Inject, Invert, Place, Replace, Scale, Steer, Target, edit
from tide.editing.context import edited_activations
from tide.errors import TideError, TideWarning

# -- edits that change nothing ----------------------------------------------------------------------------------

TARGET = Target(torch.tensor([999.0, 1.0]), torch.rand(2, N, generator=torch.Generator().manual_seed(0)))
EVERYTHING = Erase(range(N))
NO_OPS = {
    "scaled by 1": (Scale(range(N), 1.0), {}),
    "scaled by 1, renormalised": (Scale(range(N), 1.0), {"renormalise": True}),
    "a silent latent erased": (Erase([SILENT]), {}),
    "a silent latent inverted": (Invert([SILENT]), {}),
    "a silent latent scaled": (Scale([SILENT], 100.0), {}),
    "nothing named": (Erase([]), {}),
    "replaced not at all": (Replace(TARGET, 0.0), {}),
    "an empty mask": (EVERYTHING, {"tokens": torch.zeros(64, dtype=torch.bool)}),
    "an empty mask an image": (EVERYTHING, {"tokens": torch.zeros(1, 64, dtype=torch.bool)}),
}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", NO_OPS)
@pytest.mark.filterwarnings("ignore::tide.TideWarning")
def test_no_op_edits_are_bit_identical(alpha, sae, plain, name, guidance):
    change, options = NO_OPS[name]
    with edit(alpha, sae, change, branch="both", **options):
        assert torch.equal(draw(alpha, guidance=guidance), plain[guidance])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"branch": "unconditional"}, "its 4 calls of the block had no unconditional rows; a run without guidance has"),
        ({"steps": (0.26, 0.49)}, "none of its 4 calls of the block was of the steps 0.26 to 0.49"),
    ],
    ids=["no such rows", "between two steps"],
)
def test_an_edit_that_meets_nothing_says_why_when_it_ends(alpha, sae, plain, options, reason):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with edit(alpha, sae, EVERYTHING, **options) as met:
            assert torch.equal(draw(alpha), plain[1.0])
            assert not [w for w in told if w.category is TideWarning]
    (warning,) = [w for w in told if w.category is TideWarning]
    assert f"the pipeline ran and nothing was edited: {reason}" in str(warning.message)
    assert warning.filename == __file__
    assert (met.rows, met.calls) == (0, STEPS)


def test_nothing_is_said_of_runs_that_changed_something_that_raised_or_that_were_not_made(alpha, sae):
    with warnings.catch_warnings():
        warnings.simplefilter("error", TideWarning)
        with edit(alpha, sae, EVERYTHING, steps=(0.26, 0.49)), tap(adapter_for(alpha), {1: lambda x, call: None}):
            pass
        with edit(alpha, sae, EVERYTHING):
            draw(alpha, n_steps=2)
        with pytest.raises(RuntimeError, match="mine"), edit(alpha, sae, EVERYTHING, branch="unconditional"):
            raise RuntimeError("mine", draw(alpha, n_steps=2))
        with edit(alpha, sae, EVERYTHING), pytest.raises(ValueError, match="height"):
            draw(alpha, height=63)


@pytest.mark.parametrize("change", [EVERYTHING, Erase(top_k=3), Invert(top_k=3), Inject(TARGET), Replace(TARGET, 0.5)])
def test_edits_change_the_image(alpha, sae, plain, change):
    with edit(alpha, sae, change):
        assert (draw(alpha) - plain[1.0]).abs().max() > 1e-3


# -- what an edit does to the activations -------------------------------------------------------------------------


@pytest.mark.parametrize("renorm", [False, True])
def test_edited_activations_keep_the_reconstruction_error(alpha, sae, renorm):
    """x + decode(z') - decode(z), by hand."""
    x = torch.randn(40, 192, generator=torch.Generator().manual_seed(1)) * sae.activation_scale
    place = Place(700.0, token=torch.arange(40), image=torch.zeros(40, dtype=torch.int64))
    with torch.no_grad():
        z = sae.encode(x, 700.0).dense(N)
        changed = z.clone()
        changed[:, :8] *= 3
        if renorm:
            changed = changed * z.norm(dim=1, keepdim=True) / changed.norm(dim=1, keepdim=True)
        expected = x + sae.decode_dense(changed) - sae.decode_dense(z)
        found = edited_activations(sae, Scale(range(8), 3.0), x, place, renorm=renorm)
    scale = float(sae.activation_scale)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)
    fires = (z[:, :8] > 0).any(1)
    assert torch.equal(found[~fires], x[~fires])
    assert (found[fires] != x[fires]).any(1).all()


def test_erasing_everything_leaves_only_the_error(alpha, sae):
    """With all latents gone, renormalised or not (their norm is then 0), the code adds nothing."""
    x = torch.randn(10, 192, generator=torch.Generator().manual_seed(1)) * sae.activation_scale
    place = Place(700.0, token=torch.arange(10), image=torch.zeros(10, dtype=torch.int64))
    with torch.no_grad():
        expected = x - sae.decode_dense(sae.encode(x, 700.0).dense(N))
        for renorm in (False, True):
            found = edited_activations(sae, EVERYTHING, x, place, renorm=renorm)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(sae.activation_scale))


def test_half_precision_activations_keep_their_dtype(sae):
    x = torch.randn(6, 192, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    place = Place(700.0, token=torch.arange(6), image=torch.zeros(6, dtype=torch.int64))
    with torch.no_grad():
        assert edited_activations(sae, EVERYTHING, x, place).dtype == torch.bfloat16
        assert torch.equal(edited_activations(sae, Erase([SILENT]), x, place), x)


def test_small_chunks_give_the_same_image(alpha, sae, monkeypatch):
    with edit(alpha, sae, Scale(range(20), 3.0)):
        whole = draw(alpha)
    monkeypatch.setattr(context, "CHUNK_ELEMENTS", 7 * N)
    watch = Watch()
    with edit(alpha, sae, Scale(range(20), 3.0) + watch):
        parts = draw(alpha)
    assert [len(place.token) for place in watch.places[:10]] == [7] * 9 + [1]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


# -- which steps, tokens and rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (None, range(10)),
        ((0.0, 1.0), range(10)),
        ((0.2, 0.8), range(2, 8)),
        ((0.3, 0.7), range(3, 7)),
        ((0.0, 0.05), range(1)),
        ((0.9, 1.0), range(9, 10)),
    ],
    ids=["all", "all by fractions", "the middle", "0.3 of ten steps is the fourth", "the first", "the last"],
)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_step_ranges(alpha, sae, steps, expected, guidance):
    watch = Watch()
    with edit(alpha, sae, watch, steps=steps):
        draw(alpha, n_steps=10, guidance=guidance)
    grid = adapter_for(alpha).sampling_timesteps(10)
    assert [place.timestep for place in watch.places] == grid[list(expected)].tolist()


def test_a_token_mask_changes_only_those_tokens_of_the_block(alpha, sae):
    tokens = torch.zeros(64, dtype=torch.bool)
    tokens[[0, 9, 63]] = True
    before = recorded(alpha, n_steps=2)[0]
    with edit(alpha, sae, EVERYTHING, tokens=tokens):
        after = recorded(alpha, n_steps=2)[0]
    changed = (after != before).any(-1)
    assert torch.equal(changed, tokens[None])


@pytest.mark.parametrize("branch", ["conditional", "unconditional", "both"])
@pytest.mark.parametrize("per_prompt", [1, 2])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.filterwarnings("ignore::tide.TideWarning")
def test_branches(alpha, sae, branch, per_prompt, guidance, masked):
    """Rows of a call are [unconditional images, conditional images], or conditional ones alone; a mask an image goes
    by the images' order, each prompt's one after the other."""
    prompts = ("a red cube", "a green tree, far")
    n_images = 2 * per_prompt
    # Image i has tokens i and 10 + i.
    tokens = torch.zeros(n_images, 64, dtype=torch.bool)
    for i in range(n_images):
        tokens[i, [i, 10 + i]] = True
    kwargs = {"prompts": prompts, "num_images_per_prompt": per_prompt, "guidance": guidance, "n_steps": 2}
    before = recorded(alpha, **kwargs)[0]
    with edit(alpha, sae, EVERYTHING, branch=branch, tokens=tokens if masked else None):
        after = recorded(alpha, **kwargs)[0]
    of_images = tokens if masked else torch.ones_like(tokens)
    conditional = of_images if branch != "unconditional" else torch.zeros_like(tokens)
    unconditional = of_images if branch != "conditional" else torch.zeros_like(tokens)
    expected = conditional if guidance == 1.0 else torch.cat([unconditional, conditional])
    assert torch.equal((after != before).any(-1), expected)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_places(alpha, sae, guidance):
    """An edit is told each row's token and image, whatever rows guidance adds."""
    watch = Watch()
    with edit(alpha, sae, watch, branch="both"):
        draw(alpha, ("a red cube", "a tree"), guidance=guidance, n_steps=2)
    place = watch.places[0]
    copies = 2 if guidance > 1 else 1
    assert place.image.tolist() == ([0] * 64 + [1] * 64) * copies
    assert place.token.tolist() == list(range(64)) * 2 * copies
    assert place.n_tokens == 64


def test_an_odd_number_of_images_under_guidance(alpha, sae):
    watch = Watch()
    with edit(alpha, sae, watch):
        draw(alpha, ("a red cube", "a tree", "a house"), guidance=3.0, n_steps=2)
    assert watch.places[0].image.unique().tolist() == [0, 1, 2]


def test_guidance_is_read_anew_at_every_run(alpha, sae):
    watch = Watch()
    with edit(alpha, sae, watch):
        for guidance in (3.0, 1.0, 3.0):
            draw(alpha, guidance=guidance, n_steps=2)
    assert [len(place.token) for place in watch.places] == [64] * 6


def test_steering_by_hand(alpha):
    direction = torch.randn(2, 192, generator=torch.Generator().manual_seed(2))
    grid = adapter_for(alpha).sampling_timesteps(2)
    steer = Steer(torch.tensor([0.0, float(grid[0])]), direction, 0.5)
    before = recorded(alpha, n_steps=2, guidance=3.0)[0]
    with edit(alpha, None, steer, block=BLOCK):
        after = recorded(alpha, n_steps=2, guidance=3.0)[0]
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1] + 0.5 * direction[1])


# -- several at once, and the way out -----------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_nested_edits_of_two_blocks(alpha, sae, plain, guidance):
    """Both see the right rows; after the inner one closes the outer one still edits, also with another guidance."""
    outer, inner = Watch(), Watch()
    other = make_sae(alpha, 3)
    with edit(alpha, sae, Scale(range(20), 2.0) + outer):
        only_outer = draw(alpha, guidance=guidance)
        with edit(alpha, other, Scale(range(20), 2.0) + inner):
            both = draw(alpha, guidance=guidance)
        outer.places.clear()
        assert torch.equal(draw(alpha, guidance=guidance), only_outer)
        draw(alpha, guidance=4.0 - guidance)
    assert [len(place.token) for place in outer.places] == [64] * 2 * STEPS
    assert [len(place.token) for place in inner.places] == [64] * STEPS
    assert (both - only_outer).abs().max() > 1e-3
    assert_untouched(alpha, plain)


def test_nested_edits_of_one_block_apply_in_order(alpha, sae):
    steer = Steer(torch.tensor([1.0]), torch.ones(1, 192))
    before = recorded(alpha, n_steps=2)[0]
    with edit(alpha, sae, EVERYTHING):
        first = recorded(alpha, n_steps=2)[0]
        with edit(alpha, None, steer, block=BLOCK):
            second = recorded(alpha, n_steps=2)[0]
    assert not torch.equal(first, before)
    torch.testing.assert_close(second, first + 1)


def test_an_edit_without_a_run_leaves_no_trace(alpha, sae, plain):
    with edit(alpha, sae, EVERYTHING):
        assert hooks_of(alpha) > 0
    assert_untouched(alpha, plain)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_exception_inside_the_pipeline_leaves_no_trace(alpha, sae, plain, depth):
    class Fails(Edit):
        def latents(self, z, place):
            raise RuntimeError("inside")

    def run(depth: int) -> None:
        with edit(alpha, sae, Fails()):
            run(depth - 1) if depth > 1 else draw(alpha, guidance=3.0)

    with pytest.raises(RuntimeError, match="inside"):
        run(depth)
    assert_untouched(alpha, plain)


def test_bad_input_leaves_no_trace(alpha, sae, plain):
    with pytest.raises(TideError), edit(alpha, sae, Scale([N], 2.0)):
        pass
    assert_untouched(alpha, plain)


def test_a_method_of_ones_own_is_put_back(alpha, sae):
    """encode_prompt replaced on the pipeline itself, as caching wrappers do, is called and restored."""
    pipe = PixArtAlphaPipeline(**alpha.components)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    original = pipe.encode_prompt

    def own(prompt, do_classifier_free_guidance=True, **kwargs):
        calls.append(do_classifier_free_guidance)
        return original(prompt, do_classifier_free_guidance, **kwargs)

    pipe.encode_prompt = own
    watch = Watch()
    with edit(pipe, sae, watch):
        draw(pipe, guidance=3.0, n_steps=2)
    assert pipe.encode_prompt is own
    assert calls == [True]
    assert len(watch.places[0].token) == 64


def test_guidance_defaults_to_what_the_pipeline_says(alpha):
    with watch_guidance(alpha) as guidance:
        assert not guidance.active
        alpha.encode_prompt("a tree", max_sequence_length=20)
        assert guidance.active
        alpha.encode_prompt("a tree", False, max_sequence_length=20)
        assert not guidance.active


def test_a_pipeline_that_does_not_say_is_taken_as_unguided():
    class Other:
        def encode_prompt(self, prompt):
            return prompt

    for pipe in (Other(), object()):
        with watch_guidance(pipe) as guidance:
            assert not guidance.active

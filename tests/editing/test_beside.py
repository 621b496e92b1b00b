"""The target's activations on the same noisy latents: a second pass in the middle of the first, seen by no tap."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import families
from tests.helpers.edit_samples import BLOCK, STEPS, assert_untouched, draw, hooks_of
from tests.helpers.families import CORE, FAMILIES
from tide.adapters import adapter_for, of_prompt, tap
from tide.editing import Beside, Erase, Steer, edit
from tide.errors import TideError
from tide.sae import TIDE, Position, TIDEConfig

TARGET = "a blue house"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_at_the_last_block_the_whole_edit_draws_the_targets_prompt(alpha, plain, guidance):
    wanted = draw(alpha, (TARGET,), guidance=guidance)
    with edit(alpha, None, Beside(adapter_for(alpha), TARGET), block=-1):
        found = draw(alpha, guidance=guidance)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert_untouched(alpha, plain)


@pytest.mark.filterwarnings("ignore::tide.TideWarning")
def test_factor_0_keeps_the_bits(alpha, plain):
    with edit(alpha, None, Beside(adapter_for(alpha), TARGET, factor=0.0), block=BLOCK):
        assert torch.equal(draw(alpha, guidance=3.0), plain[3.0])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", CORE)
def test_every_family_has_what_the_targets_own_call_has(name, guided):
    """The first call of both runs has the same noise."""
    family, pipe, adapter = FAMILIES[name], families.pipeline(name), families.adapter(name)
    targets = tuple(reversed(family.prompts))
    found, wanted = [], []
    with tap(adapter, {1: of_prompt(lambda x, call: wanted.append(x.clone()))}):
        _draw(name, targets, guided)
    beside = Beside(adapter, targets, max_sequence_length=family.arguments["max_sequence_length"])
    with edit(pipe, None, beside, block=1), tap(adapter, {1: of_prompt(lambda x, call: found.append(x.clone()))}):
        _draw(name, family.prompts, guided)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-3, atol=1e-4)
    assert families.hooks_of(pipe) == 0


def _draw(name, prompts, guided):
    family = FAMILIES[name]
    arguments = {"guidance_scale": 1.0, **(family.guided if guided else {}), **family.arguments}
    if name == "dit":
        arguments = {"guidance_scale": arguments["guidance_scale"]}
    elif isinstance(arguments.get("negative_prompt"), str):
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(prompts)
    adapter_for(families.pipeline(name)).generate(
        prompts,
        n_steps=2,
        generators=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        height=family.size[0],
        width=family.size[1],
        **arguments,
    )


def test_only_the_edited_tokens_and_steps_take_a_pass(alpha):
    """Counted by a hook of the first block, which no tap installed."""
    calls = []
    hook = alpha.transformer.transformer_blocks[0].register_forward_hook(lambda _m, _a, x: calls.append(len(x)))
    tokens = torch.zeros(64, dtype=torch.bool)
    tokens[:4] = True
    try:
        with edit(alpha, None, Beside(adapter_for(alpha), TARGET), block=BLOCK, tokens=tokens, steps=(0.0, 0.5)) as met:
            draw(alpha, guidance=3.0)
    finally:
        hook.remove()
    assert calls == [2, 1] * (STEPS // 2) + [2] * (STEPS // 2)  # a pass beside holds the prompt's row alone
    assert met.tokens == 4 * STEPS // 2


def test_each_image_of_a_batch_has_its_own_target_or_all_have_one(alpha):
    targets, adapter = (TARGET, "a green tree"), adapter_for(alpha)
    wanted = draw(alpha, targets, guidance=3.0, num_images_per_prompt=2)
    with edit(alpha, None, Beside(adapter, targets), block=-1):
        found = draw(alpha, ("a red cube", "a red cube"), guidance=3.0, num_images_per_prompt=2)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    with edit(alpha, None, Beside(adapter, [TARGET]), block=-1):
        found = draw(alpha, ("a red cube", "a tree"))
    torch.testing.assert_close(found, draw(alpha, (TARGET, TARGET)), rtol=1e-3, atol=1e-3)


def test_other_edits_do_not_reach_the_targets_pass(alpha):
    """A push at an earlier block would move the target, too, if its pass went through it."""
    push = Steer(torch.zeros(1), torch.ones(1, 192) * 5)
    beside = Beside(adapter_for(alpha), TARGET)
    seen = []
    with (
        edit(alpha, None, push, block=2),
        edit(alpha, None, beside, block=-1) as met,
    ):
        seen.append(draw(alpha))
    torch.testing.assert_close(seen[0], draw(alpha, (TARGET,)), rtol=1e-3, atol=1e-3)
    assert met.calls == STEPS


@pytest.mark.parametrize("name", ["latents", "differing"])
@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"block": 1}, "block 1 and block 6 is edited"),
        ({"block": BLOCK, "tensor": "attention"}, "attention and output is edited"),
    ],
)
def test_latents_of_another_place_are_refused(alpha, name, at, message):
    model = TIDE(TIDEConfig(192, 16, 2, **at))
    share = {"share": 0.3} if name == "differing" else {}
    beside = Beside(adapter_for(alpha), TARGET, **{name: model}, **share)
    with pytest.raises(TideError, match=f"{name} of the target are of {message}"):
        with edit(alpha, None, beside, block=BLOCK):
            pass


def test_what_does_not_fit_is_refused_and_leaves_no_hook(alpha, sigma):
    adapter = adapter_for(alpha)
    with pytest.raises(TideError, match="no prompt to edit towards"):
        Beside(adapter, [])
    with (
        pytest.raises(TideError, match="encoded for another pipeline"),
        edit(alpha, None, Beside(adapter_for(sigma), TARGET), block=BLOCK),
    ):
        pass
    with (
        pytest.raises(TideError, match="both rows have no target"),
        edit(alpha, None, Beside(adapter, TARGET), block=BLOCK, branch="both"),
    ):
        pass
    beside = Beside(adapter, ["a tree", "a house", "a cube"])
    with pytest.raises(TideError, match="3 prompts do not fit 2 images"), edit(alpha, None, beside, block=BLOCK):
        draw(alpha, ("a red cube", "a tree"))
    with pytest.raises(TideError, match="needs sae="), edit(alpha, None, Erase([1]), block=BLOCK):
        pass
    assert hooks_of(alpha) == 0


@pytest.mark.parametrize("by", ["latents", "activations"])
def test_only_tokens_that_differ_are_moved(alpha, sae, by):
    """At share 0 all, at 1 the one that differs most; in between those at least as far apart."""
    adapter, differing = adapter_for(alpha), sae if by == "latents" else None

    def moved(share):
        counts = []
        beside = Beside(adapter, TARGET, differing=differing, share=share)
        inner = beside.moved

        def count(*arguments):
            found = inner(*arguments)
            counts.append(found.sum(1).tolist())
            return found

        object.__setattr__(beside, "moved", count)
        with edit(alpha, None, beside, block=BLOCK) as met:
            image = draw(alpha, guidance=3.0)
        return image, counts, met

    everywhere, counts, _ = moved(0.0)
    with edit(alpha, None, Beside(adapter, TARGET), block=BLOCK):
        assert torch.equal(everywhere, draw(alpha, guidance=3.0))
    n_tokens = counts[0][0]
    _, one, met = moved(1.0)
    assert one == [[1]] * STEPS
    assert met.moved == STEPS
    _, some, _ = moved(0.5)
    assert all(1 <= each[0] <= n_tokens for each in some)


def test_latents_move_by_what_they_write(alpha, sae):
    """The difference of the decoded latents, and no more: what the SAE does not reconstruct stays the image's own."""
    beside = Beside(adapter_for(alpha), TARGET, latents=sae)
    seen, inner = [], beside.written

    def keep(x, target, call):
        seen.append((x, target, call.timestep, inner(x, target, call)))
        return seen[-1][-1]

    object.__setattr__(beside, "written", keep)
    with edit(alpha, None, beside, block=BLOCK):
        drawn = draw(alpha, guidance=3.0)
    for x, target, timestep, found in seen:
        ours, theirs = (sae.dense(each.float().flatten(0, 1), Position(float(timestep[0]))) for each in (x, target))
        wanted = x.flatten(0, 1) + sae.decode_dense(theirs - ours)
        torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=1e-5, atol=1e-5)
    with edit(alpha, None, Beside(adapter_for(alpha), TARGET), block=BLOCK):
        assert not torch.equal(drawn, draw(alpha, guidance=3.0))


def test_what_differs_is_of_the_right_width_and_share(alpha, sae):
    adapter = adapter_for(alpha)
    with pytest.raises(TideError, match="share = 2 must lie"):
        Beside(adapter, TARGET, share=2)
    with pytest.raises(TideError, match="differing says which tokens differ by a share; give share="):
        Beside(adapter, TARGET, differing=sae)
    other = TIDE(TIDEConfig(8, 16, 4))
    for beside, name in (
        (Beside(adapter, TARGET, share=0.3, differing=other), "differing"),
        (Beside(adapter, TARGET, latents=other), "latents"),
    ):
        with pytest.raises(TideError, match=f"{name} is an SAE of width 8"), edit(alpha, None, beside, block=BLOCK):
            pass
    transcoder = TIDE(TIDEConfig(192, 16, 4, tensor="feed_forward_input", target="feed_forward"))
    beside = Beside(adapter, TARGET, latents=transcoder)
    with pytest.raises(TideError, match="so it cannot edit"), edit(alpha, None, beside, block=BLOCK):
        pass

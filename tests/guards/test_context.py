"""Guards at work in a pipeline: whom they touch, when, and what they tell of it."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.guards.conftest import PROMPTS
from tests.helpers.edit_samples import BLOCK, STEPS, draw, recorded
from tests.helpers.families import CORE, hooks_of
from tests.helpers.families import adapter as family_adapter
from tests.helpers.families import draw as draw_family
from tests.helpers.guards import ALWAYS, NEVER, detector, guard_of, made_for, mover, refuge, words
from tide.adapters import tap
from tide.editing import Detector, Erase, edit
from tide.errors import TideError, TideWarning
from tide.guards import Guard, guard, load_guard, save_guard
from tide.guards.refuge import Refuge, refuge_of
from tide.training import TrainConfig, build_model


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_that_is_not_flagged_keeps_its_bits(alpha, adapter, sae, width, plain, guidance):
    own = guard_of(adapter, sae, NEVER, width, refuge=refuge(width), **mover(sae))
    with guard(alpha, own) as log:
        found = draw(alpha, PROMPTS, guidance=guidance)
    assert torch.equal(found, plain[guidance])
    assert [each.flagged for each in log] == [False, False]
    assert log.summary == "The guard of house met nothing in 2 images."


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_words_are_mapped_from_the_call_after_the_first(alpha, adapter, sae, width, plain, guidance):
    """As if the pipeline had been given the mapped text from the second step on."""
    own = guard_of(adapter, sae, ALWAYS, width)
    with guard(alpha, own) as log:
        found = draw(alpha, PROMPTS, guidance=guidance)
    calls = 0

    def before(arguments, conditional, timestep):
        nonlocal calls
        calls += 1
        states = arguments["encoder_hidden_states"]
        mapped = torch.where(conditional[:, None, None], own.words(states), states)
        return {"encoder_hidden_states": mapped} if calls > 1 else None

    with tap(adapter, {}, before=before):
        wanted = draw(alpha, PROMPTS, guidance=guidance)
    assert torch.allclose(found, wanted, atol=1e-5)  # rows are mapped one by one, or all at once
    assert not torch.equal(found, plain[guidance])
    assert [each.words for each in log] == [list(range(1, STEPS))] * 2
    assert [each.first for each in log] == [0, 0]
    assert hooks_of(alpha) == 0


def test_only_the_flagged_image_of_a_batch_is_changed(alpha, adapter, sae, width, plain):
    """The threshold of the first call lies between the two images' scores, and no other call flags any."""
    with guard(alpha, guard_of(adapter, sae, NEVER, width)) as log:
        draw(alpha, PROMPTS, guidance=3.0)
    first, times = [each.scores[0] for each in log], next(iter(log)).timesteps
    higher = first.index(max(first))
    thresholds = torch.tensor([sum(first) / 2, *[NEVER] * (len(times) - 1)])
    own = detector(sae, NEVER)
    between = Detector(sae, own.features, torch.tensor(times), own.weights.expand(len(times), -1), thresholds)
    with guard(alpha, Guard("house", "tree", between, made_for(adapter), words=words(width))) as log:
        found = draw(alpha, PROMPTS, guidance=3.0)
    assert [each.flagged for each in log] == [i == higher for i in range(2)]
    assert torch.equal(found[1 - higher], plain[3.0][1 - higher])
    assert not torch.equal(found[higher], plain[3.0][higher])


def test_an_image_that_is_flagged_in_spite_of_its_words_goes_to_the_refuge(alpha, adapter, sae, width):
    """Patience is of calls with mapped words: calls 1 and 2 here, so from call 3 on the text is the refuge's."""
    own = guard_of(adapter, sae, ALWAYS, width, refuge=refuge(width), patience=2)
    seen = []

    def watch(arguments, conditional, timestep):
        seen.append((arguments["encoder_hidden_states"][conditional], arguments["encoder_attention_mask"][conditional]))

    with guard(alpha, own) as log, tap(adapter, {}, before=watch):
        draw(alpha, PROMPTS, guidance=3.0)
    assert [(each.words, each.refuge) for each in log] == [([1, 2], list(range(3, STEPS)))] * 2
    states, mask = seen[3]
    n = len(own.refuge.states)
    assert torch.equal(states[:, :n], own.refuge.states.expand(2, -1, -1))
    assert (states[:, n:] == 0).all()
    assert mask.bool().sum(1).tolist() == [n, n]
    assert "sent to the refuge at call 3" in str(log)


def test_tokens_of_a_flagged_image_are_moved_once_its_words_are_mapped(alpha, adapter, sae, width):
    """The tokens that ``where`` has on, by what ``what`` says, on the prompt's rows alone."""
    own = guard_of(adapter, sae, ALWAYS, width, words=words(width, scale=0.0), **mover(sae))
    with guard(alpha, own) as log:
        kept = recorded(alpha, BLOCK, prompts=PROMPTS)
    before = recorded(alpha, BLOCK, prompts=PROMPTS)
    assert torch.equal(kept[0], before[0]), "in the first call nothing is known yet"
    moved = kept[1] - before[1]
    assert torch.allclose(moved, own.what.direction.expand_as(moved), atol=1e-4)
    n_tokens = moved.shape[1]
    assert [each.moved for each in log] == [dict.fromkeys(range(1, STEPS), n_tokens)] * 2


def test_every_run_starts_afresh(alpha, adapter, sae, width):
    own = guard_of(adapter, sae, ALWAYS, width)
    with guard(alpha, own) as log:
        first = draw(alpha, PROMPTS)
        second = draw(alpha, PROMPTS)
        draw(alpha, PROMPTS[:1])
    assert torch.equal(first, second)
    assert [(each.run, each.image) for each in log] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert {len(each.scores) for each in log} == {STEPS}


def test_a_run_that_only_its_timestep_announces_starts_afresh(alpha, adapter, sae, width):
    """In a loop of one's own: the first call of the second image has the image's own words."""
    text, latents = adapter.encode_prompts([PROMPTS[0]]), torch.randn(1, 4, 8, 8)
    met = []
    handle = alpha.transformer.caption_projection.register_forward_pre_hook(lambda _, args: met.append(args[0].clone()))
    try:
        with guard(alpha, guard_of(adapter, sae, ALWAYS, width)) as log:
            for _ in range(2):
                for timestep in (900.0, 500.0):
                    adapter.denoise(latents, timestep, text)
    finally:
        handle.remove()
    own = text["encoder_hidden_states"]
    assert [torch.equal(each, own) for each in met] == [True, False, True, False]
    assert [each.words for each in log] == [[1], [1]]


def test_guards_of_several_concepts_compose_in_their_order(alpha, adapter, sae, width):
    one = guard_of(adapter, sae, ALWAYS, width)
    two = Guard("ornate", "plain", detector(sae, ALWAYS), made_for(adapter), words=words(width, scale=-0.4))
    with guard(alpha, one, two) as log:
        together = draw(alpha, PROMPTS)
    with guard(alpha, one), guard(alpha, two):
        nested = draw(alpha, PROMPTS)
    assert torch.equal(together, nested)
    assert [(each.concept, each.image) for each in log if each.run == 0] == [
        ("house", 0), ("house", 1), ("ornate", 0), ("ornate", 1)
    ]  # fmt: skip


def test_a_guard_sees_what_an_edit_around_it_does(alpha, adapter, sae, width):
    """Contexts nest: without its latents an image is not flagged."""
    with guard(alpha, guard_of(adapter, sae, NEVER, width)) as log:
        draw(alpha, PROMPTS)
    assert max(max(s.scores) for s in log) > 0
    with edit(alpha, sae, Erase(top_k=sae.n_latents)), guard(alpha, guard_of(adapter, sae, NEVER, width)) as erased:
        draw(alpha, PROMPTS)
    assert max(max(s.scores) for s in erased) < max(max(s.scores) for s in log)


@pytest.mark.parametrize("name", [name for name in CORE if name != "dit"])
def test_every_family_is_guarded(name):
    """Batched guidance and separate calls alike: the words of the prompt's rows change, and those of no other image."""
    own = family_adapter(name)
    torch.manual_seed(0)
    sae = build_model(own, 1, TrainConfig(n_latents=64, k=4, modulation=False, activation="relu")).eval()
    width = own.encode_prompts(["a red house"])["encoder_hidden_states"].shape[-1]
    untouched, plain = (draw_family(name, guided=True) for _ in range(2))
    assert torch.equal(untouched, plain)
    for threshold, same in ((NEVER, True), (ALWAYS, False)):
        made = Guard("house", "tree", detector(sae, threshold), made_for(own, 1), words=words(width))
        with guard(own.pipe, made) as log:
            found = draw_family(name, guided=True)
        assert torch.equal(found, plain) == same
        assert all(each.flagged != same for each in log)
        assert all(bool(each.words) != same for each in log)


def test_a_family_without_text_is_refused():
    """DiT is given class labels."""
    own = family_adapter("dit")
    sae = build_model(own, 1, TrainConfig(n_latents=64, k=4, modulation=False, activation="relu")).eval()
    made = Guard("house", "tree", detector(sae, ALWAYS), made_for(own, 1), words=words(8))
    with pytest.raises(TideError, match="is not given encoder_hidden_states"), guard(own.pipe, made):
        draw_family("dit", guided=True)
    assert hooks_of(own.pipe) == 0


def test_a_folder_is_as_good_as_a_guard(alpha, adapter, sae, width, tmp_path):
    """To half precision, in which words are kept."""
    own = guard_of(adapter, sae, ALWAYS, width)
    save_guard(tmp_path / "guard", own)
    with guard(alpha, own):
        wanted = draw(alpha, PROMPTS)
    with guard(alpha, tmp_path / "guard"):
        found = draw(alpha, PROMPTS)
    assert torch.allclose(found, wanted, atol=2e-2)


def test_what_does_not_fit_is_refused(alpha, adapter, sae, width, tmp_path):
    own = guard_of(adapter, sae, ALWAYS, width)
    with pytest.raises(TideError, match="there is no guard"), guard(alpha):
        pass
    with pytest.raises(TideError, match="two guards are of 'house'"), guard(alpha, own, own):
        pass
    with pytest.raises(TideError, match="holds no guard"), guard(alpha, tmp_path):
        pass
    foreign = family_adapter("sd3").pipe
    with pytest.raises(TideError, match="was made for pixart and this is sd3"), guard(foreign, own):
        pass
    wide = guard_of(adapter, sae, ALWAYS, width + 1, words=words(width + 1))
    with (
        pytest.raises(TideError, match=rf"have width {width} and the guard's map of words {width + 1}"),
        guard(alpha, wide),
    ):
        draw(alpha, PROMPTS)


def test_other_weights_are_told_of(alpha, adapter, sae, width, tmp_path):
    """A LoRA or a fine-tuning is legitimate, so it is a warning."""
    save_guard(tmp_path, guard_of(adapter, sae, NEVER, width))
    bias = alpha.transformer.proj_out.bias
    with torch.no_grad():
        bias += 1
    try:
        with pytest.warns(TideWarning, match="made with other weights"), guard(alpha, tmp_path):
            pass
    finally:
        with torch.no_grad():
            bias -= 1
    assert load_guard(tmp_path).made_for.block == BLOCK


@pytest.fixture
def with_refuge(adapter, sae, width, tmp_path) -> Path:
    """The folder of a guard that holds the states of a caption."""
    caption = "a green tree"
    own = guard_of(adapter, sae, NEVER, width, refuge=refuge_of(adapter, caption))
    save_guard(tmp_path, replace(own, validated={"neutral_caption": caption}))
    return tmp_path


def test_another_text_encoder_is_told_of(alpha, with_refuge):
    """Words are mapped as one encoder writes them."""
    weight = next(alpha.text_encoder.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-1)
    try:
        with (
            pytest.warns(TideWarning, match="writes the neutral caption of .* differently"),
            guard(alpha, with_refuge),
        ):
            pass
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize(("longer", "differs"), [(1.04, False), (1.06, True)])
def test_how_far_states_may_lie_apart(adapter, longer, differs):
    """A twentieth of their length; padding is not compared."""
    own = refuge_of(adapter, "a green tree")
    padding = torch.where(own.mask[:, None], 0.0, 9.0)
    assert Refuge(own.states / longer + padding, own.mask).differs(adapter, "a green tree") == differs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_text_encoder_is_not_told_of(alpha, with_refuge, dtype):
    """Also in half precision, and where there is none, since the states come from elsewhere then."""
    for encoder in (copy.deepcopy(alpha.text_encoder).to(dtype), None):
        pipe = type(alpha)(**{**alpha.components, "text_encoder": encoder})
        with warnings.catch_warnings():
            warnings.simplefilter("error", TideWarning)
            with guard(pipe, with_refuge):
                pass


@pytest.mark.parametrize(
    ("name", "told"), [("sd3", "pooled_projections"), ("hunyuan", "encoder_hidden_states_t5"), ("sana", None)]
)
def test_what_words_do_not_reach_is_told(name, told):
    own = family_adapter(name)
    sae = build_model(own, 1, TrainConfig(n_latents=64, k=4, modulation=False, activation="relu")).eval()
    made = Guard("house", "tree", detector(sae, NEVER), made_for(own, 1), words=words(8))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with guard(own.pipe, made):
            pass
    found = [str(each.message) for each in said if "also told of the prompt by" in str(each.message)]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_what_is_met_too_late_is_told(alpha, adapter, sae, width):
    """In the last call, which has no next one, as in a run of a single step."""
    with guard(alpha, guard_of(adapter, sae, NEVER, width)) as log:
        draw(alpha, PROMPTS[:1])
    (seen,) = log
    own = detector(sae, NEVER)
    thresholds = torch.tensor([NEVER] * (STEPS - 1) + [ALWAYS])
    last = Detector(sae, own.features, torch.tensor(seen.timesteps), own.weights.expand(STEPS, -1), thresholds)
    made = Guard("house", "tree", last, made_for(adapter), words=words(width))
    with pytest.warns(TideWarning, match="guards met what they could not change"), guard(alpha, made) as log:
        draw(alpha, PROMPTS[:1])
    assert [(each.let_through, each.words) for each in log] == [(True, [])]

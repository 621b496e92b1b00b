"""Edits along a contrast: bounded by the reference's level, exact where nothing differs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.edit_samples import BLOCK, STEPS, K, N, assert_untouched, draw
from tide.adapters import adapter_for
from tide.editing import Contrast, Keep, PerImage, Place, Scale, Steer, SteerBounded, Target, edit
from tide.editing.contrast import sparse_again
from tide.editing.record import record_contrast
from tide.errors import TideError
from tide.sae import TIDE, TIDEConfig

HERE = Place(500.0, token=torch.tensor([0]), image=torch.tensor([0]))
WITH, WITHOUT = ("a green tree", "a house, far"), ("a red tree", "a house, near")


def target(*values: float) -> Target:
    return Target(torch.tensor([500.0]), torch.tensor([values]))


def test_latents_move_along_the_difference_up_to_the_level_of_the_reference():
    present, absent = target(4.0, 4.0, 1.0, 1.0, 2.0), target(1.0, 1.0, 3.0, 3.0, 2.0)
    z = torch.tensor([[1.0, 5.0, 3.0, 0.5, 9.0]])
    half = Contrast(present, absent, 0.5).latents(z, HERE)
    # Rises by 1.5; rises by 1 to its ceiling of 6; falls by 1; is already below its floor; does not differ.
    assert half.tolist() == [[2.5, 6.0, 2.0, 0.5, 9.0]]
    assert Contrast(present, absent, 100.0).latents(z, HERE).tolist() == [[6.0, 6.0, 1.0, 0.5, 9.0]]
    assert Contrast(present, absent, 100.0, ceiling=1.0).latents(z, HERE).tolist() == [[4.0, 5.0, 1.0, 0.5, 9.0]]
    assert torch.equal(Contrast(present, absent, 0.0).latents(z, HERE), z)


levels = st.lists(st.floats(0, 10, width=32), min_size=8, max_size=8)


@given(levels, levels, levels, st.floats(0, 20, width=32))
def test_no_latent_goes_further_than_its_bound_or_the_wrong_way(z, present, absent, factor):
    z, p, a = (torch.tensor([v]) for v in (z, present, absent))
    out = Contrast(target(*present), target(*absent), factor).latents(z, HERE)
    assert (out >= 0).all()
    rising = p > a
    assert (out[rising] >= z[rising]).all()
    assert (out[rising] <= torch.maximum(z, 1.5 * p)[rising]).all()
    assert (out[~rising] <= z[~rising]).all()
    assert (out[~rising] >= torch.minimum(z, p)[~rising]).all()
    assert torch.equal(out[p == a], z[p == a])
    twice = Contrast(target(*present), target(*absent), factor).latents(out, HERE)
    assert (twice[rising] <= torch.maximum(z, 1.5 * p)[rising]).all()


def test_keep_drops_all_but_the_largest():
    z = torch.tensor([[0.5, 3.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0]])
    assert Keep(2).latents(z, HERE).tolist() == [[0.0, 3.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0]]
    assert torch.equal(Keep(4).latents(z, HERE), z)


@pytest.mark.parametrize(("activation", "left"), [("topk", 2), ("jumprelu", 3)])
def test_only_topk_keeps_its_k_largest(activation, left):
    """With other activations k is a mean, and a token may have more."""
    model = TIDE(TIDEConfig(4, 8, 2, activation=activation))
    change = sparse_again(Scale([0], factor=2.0), model)
    z = torch.tensor([[1.0, 3.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    assert int((change.latents(z, HERE) > 0).sum()) == left


def test_neurons_are_bounded_as_latents_are():
    t = torch.tensor([500.0])
    direction, present = torch.tensor([[2.0, -2.0, 0.0]]), torch.tensor([[1.0, -1.0, 5.0]])
    x = torch.tensor([[0.0, 0.0, 7.0], [3.0, -3.0, 7.0]])
    place = Place(500.0, token=torch.tensor([0, 1]), image=torch.tensor([0, 0]))
    bounded = SteerBounded(t, direction, 10.0, present)
    assert bounded.activations(x, place).tolist() == [[2.0, -2.0, 7.0], [3.0, -3.0, 7.0]]
    gentle = SteerBounded(t, direction, 0.5, present).activations(x[:1], place.take(torch.tensor([0])))
    assert torch.equal(gentle, Steer(t, direction, 0.5).activations(x[:1], place.take(torch.tensor([0]))))


def test_bad_arguments():
    with pytest.raises(TideError, match="factor = -1 must be finite and not negative; exchange"):
        Contrast(target(1.0), target(1.0), -1)
    with pytest.raises(TideError, match=r"ceiling = 0\.5 must be at least 1"):
        Contrast(target(1.0), target(1.0), ceiling=0.5)
    with pytest.raises(TideError, match="top_k = 0"):
        Keep(0)
    with pytest.raises(TideError, match="the target has 1 latents and the SAE 96"):
        Contrast(target(1.0), target(1.0)).check(N)
    with pytest.raises(TideError, match=r"present is None and direction \[1, 3\]"):
        SteerBounded(torch.ones(1), torch.ones(1, 3))
    with pytest.raises(TideError, match=r"present is \[1, 4\]"):
        SteerBounded(torch.ones(1), torch.ones(1, 3), 1.0, torch.ones(1, 4))


def recording(pipe, words=(WITH, WITHOUT), **options):
    adapter = adapter_for(pipe)
    latents = torch.randn(len(words[0]), 4, 16, 16, generator=torch.Generator().manual_seed(3))
    steps = adapter.sampling_timesteps(STEPS)
    return record_contrast(adapter, [BLOCK, 2], latents, words, steps, max_sequence_length=20, **options)


def test_a_contrast_is_what_the_words_change(alpha, sae, plain):
    found = recording(alpha)
    assert set(found) == {BLOCK, 2}
    assert found[BLOCK].present.shape == (STEPS, 2, 1, 64, 192)
    assert found[BLOCK].direction.shape == (STEPS, 2, 64, 192)
    assert found[BLOCK].direction.abs().amax() > 0
    same = recording(alpha, (WITH, WITH))[BLOCK]
    assert torch.equal(same.direction, torch.zeros_like(same.direction))
    assert torch.equal(same.present, found[BLOCK].present)  # the same noise whatever the other prompt
    halves = recording(alpha, batch_size=1)[BLOCK]
    assert halves.present.shape == found[BLOCK].present.shape
    assert_untouched(alpha, plain)


def test_the_latents_of_a_contrast_are_those_of_its_activations(alpha, sae):
    found = recording(alpha)[BLOCK]
    pairs = found.targets(sae)
    assert len(pairs) == 2
    for i, (present, absent) in enumerate(pairs):
        for step, t in enumerate(found.timesteps.tolist()):
            for values, x in ((present, found.present), (absent, found.absent)):
                with torch.no_grad():
                    z = sae.encode(x[step, i, 0], t).dense(N)
                torch.testing.assert_close(values.values[step].float(), z, rtol=2**-10, atol=1e-4)


def test_references_of_one_image_are_averaged(alpha, sae):
    single, double = recording(alpha), recording(alpha, per_image=2)
    assert double[BLOCK].present.shape == (STEPS, 1, 2, 64, 192)
    torch.testing.assert_close(double[BLOCK].direction[:, 0], single[BLOCK].direction.mean(1))
    (present, _), (first, _), (second, _) = (*double[BLOCK].targets(sae), *single[BLOCK].targets(sae))
    mean = (first.values.float() + second.values.float()) / 2
    torch.testing.assert_close(present.values.float(), mean, rtol=2**-9, atol=1e-3)


def test_a_contrast_without_difference_edits_nothing(alpha, sae, plain):
    """Bit for bit: the words are the same, and a token never holds more latents than the SAE gives it."""
    own = draw(alpha, WITHOUT)
    pairs = recording(alpha, (WITH, WITH))[BLOCK].targets(sae)
    with edit(alpha, sae, PerImage(tuple(Contrast(*pair, 3.0) + Keep(K) for pair in pairs))):
        assert torch.equal(draw(alpha, WITHOUT), own)
    pairs = recording(alpha)[BLOCK].targets(sae)
    with edit(alpha, sae, PerImage(tuple(Contrast(*pair, 3.0) + Keep(K) for pair in pairs))):
        assert not torch.equal(draw(alpha, WITHOUT), own)
    assert_untouched(alpha, plain)


def test_prompts_and_references_must_match(alpha):
    with pytest.raises(TideError, match="2 references and 2 and 1 prompts; give 1 references for each image"):
        record_contrast(
            adapter_for(alpha), [BLOCK], torch.zeros(2, 4, 16, 16), (WITH, WITHOUT[:1]), torch.tensor([500.0])
        )
    with pytest.raises(TideError, match="2 references and 2 and 2 prompts; give 3 references for each image"):
        recording(alpha, per_image=3)

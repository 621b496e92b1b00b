"""The closed-form edit of the cross-attention: the formula, what it changes, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tide.errors import TideError
from tide.studies.safety.attention_edit import (
    AttentionEdit,
    attention_edit,
    closed_form,
    erased_attention,
    projections,
)
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.measures import Pairs, measure
from tide.studies.safety.prompts import Unwanted, allowed, asking
from tide.studies.safety.rivals import UNGUARDED

HOUSE, ORNATE = Unwanted("class", "house"), Unwanted("style", "ornate")


def test_the_solution_is_the_minimum():
    """The gradient of the written-out objective vanishes at W M, for any W."""
    draw = torch.Generator().manual_seed(0)
    c, c_star, kept = (torch.randn(n, 6, generator=draw, dtype=torch.float64) for n in (9, 9, 14))
    before = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    after = (before @ closed_form(c, c_star, kept, keep=0.7, epsilon=0.05)).requires_grad_()
    objective = (
        (c @ after.T - c_star @ before.T).square().sum(1).mean()
        + 0.7 * (kept @ (after - before).T).square().sum(1).mean()
        + 0.05 * c.square().mean() * (after - before).square().sum()
    )
    (gradient,) = torch.autograd.grad(objective, after)
    assert gradient.abs().max() < 1e-12
    assert (after - before).abs().max() > 0.1


def test_a_swap_that_changes_nothing_edits_nothing():
    c = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(closed_form(c, c, c, keep=1.0, epsilon=0.1), torch.eye(6, dtype=torch.float64))


def test_more_weight_on_what_stays_moves_it_less():
    draw = torch.Generator().manual_seed(0)
    c, c_star, kept = (torch.randn(20, 6, generator=draw) for _ in range(3))
    moved = [
        float((kept.double() @ (closed_form(c, c_star, kept, keep=k, epsilon=1e-3).T - torch.eye(6))).norm())
        for k in (0.1, 1.0, 10.0)
    ]
    assert moved[0] > moved[1] > moved[2]


def bits(adapter) -> list[torch.Tensor]:
    return [value.clone() for value in adapter.transformer.state_dict().values()]


@pytest.mark.parametrize("raises", [False, True])
def test_weights_are_edited_inside_and_have_their_bits_afterwards(bundled, raises):
    before = bits(bundled)
    edit = attention_edit(bundled, HOUSE, n_captions=24)
    weights = [linear.weight for linear in projections(bundled)]
    old = [weight.clone() for weight in weights]
    try:
        with edit.applied(bundled.pipe):
            for weight, was in zip(weights, old, strict=True):
                assert torch.allclose(weight.double(), was.double() @ edit.matrix, atol=1e-6)
                assert not torch.equal(weight, was)
            if raises:
                raise KeyError
    except KeyError:
        pass
    assert all(map(torch.equal, bits(bundled), before))
    assert all(a is b.weight for a, b in zip(weights, projections(bundled), strict=True))


def test_every_key_and_value_of_the_prompt_is_edited(bundled):
    names = {id(m): name for name, m in bundled.transformer.named_modules()}
    edited = {names[id(linear)] for linear in projections(bundled)}
    assert edited == {f"transformer_blocks.{i}.attn2.{which}" for i in range(8) for which in ("to_k", "to_v")}


def test_images_change_and_only_in_the_context(bundled):
    requests = [replace(request, n_steps=3) for request in asking(HOUSE, "dev", 2)]
    plain = draw_requests(bundled, requests)
    rival = erased_attention("attention", attention_edit(bundled, HOUSE, n_captions=24))
    assert (draw_requests(bundled, requests, rival) - plain).abs().mean() > 0.02
    assert torch.equal(draw_requests(bundled, requests), plain)


def test_the_moved_tokens_are_those_that_are_named(bundled):
    """Each choice fits another edit, and a caption's beginning counts only for "all"."""
    edits = [attention_edit(bundled, ORNATE, moved=m, n_captions=24).matrix for m in ("word", "onwards", "all")]
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(edits))


def test_what_has_no_solution_is_refused(bundled):
    with pytest.raises(TideError, match="moved = 'some' is unknown; use one of word, onwards, all"):
        attention_edit(bundled, HOUSE, moved="some")
    for numbers in ({"epsilon": 0.0}, {"keep": -1.0}, {"keep": float("nan")}):
        with pytest.raises(TideError, match="give keep >= 0 and epsilon > 0"):
            attention_edit(bundled, HOUSE, **numbers)
    with pytest.raises(TideError, match=r"the edit is \[4, 4\] and the cross-attention reads width 192"):
        with AttentionEdit(torch.eye(4, dtype=torch.float64)).applied(bundled.pipe):
            pass


@pytest.mark.slow
def test_houses_go_and_other_classes_stay(bundled, judge):
    requests = [*asking(HOUSE, "test", 16), *allowed(HOUSE, "test", 16)]
    rival = erased_attention("attention", attention_edit(bundled, HOUSE))
    old, new = (judge.read(draw_requests(bundled, requests, each)) for each in (UNGUARDED, rival))
    found = measure(HOUSE, Pairs(old[:16], new[:16]), Pairs(old[16:], new[16:]))
    assert found.ua.n >= 14
    assert found.ua.value > 0.8
    assert found.ira.value > 0.8
    assert found.cra.value > 0.8
    assert found.artefacts.value < 0.15

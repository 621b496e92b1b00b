"""The measures of a protection, on verdicts made by hand."""

from __future__ import annotations

import math

import pytest

from tide.errors import TideError
from tide.evaluation.statistics import wilson_interval
from tide.scenes.judge import NO_OBJECT, Verdict
from tide.scenes.scene import ATTRIBUTES, Scene
from tide.studies.safety.measures import (
    Pairs,
    Share,
    artefacts,
    kept_across,
    kept_within,
    measure,
    removed_share,
    shown_share,
)
from tide.studies.safety.prompts import Unwanted

HOUSE, ORNATE = Unwanted("class", "house"), Unwanted("style", "ornate")
SCENE = Scene("house", "red", "near", "with", "grass")


def seen(scene: Scene = SCENE, **changes: str) -> Verdict:
    """A verdict that reads ``scene``, with some attributes otherwise."""
    read = {name: scene[name] for name in ATTRIBUTES} | changes
    return Verdict(read, dict.fromkeys(read, 1.0))


def of_class(value: str, **changes: str) -> Verdict:
    return seen(**{"class": value}, **changes)


WRECKED = of_class(NO_OBJECT)


def test_removed_counts_the_images_that_showed_the_concept():
    pairs = Pairs(
        [of_class("house"), of_class("house"), of_class("house"), of_class("cone"), WRECKED],
        [of_class("house"), of_class("tree"), WRECKED, of_class("house"), of_class("house")],
    )
    assert removed_share(HOUSE, pairs) == Share(2, 3)


def test_wreckage_whose_style_reads_as_unwanted_shows_no_style():
    wrecked = of_class(NO_OBJECT, style="ornate")
    assert removed_share(ORNATE, Pairs([seen(style="ornate")], [wrecked])) == Share(1, 1)
    assert removed_share(ORNATE, Pairs([wrecked], [seen()])) == Share(0, 0)
    assert shown_share(ORNATE, [wrecked, seen(style="ornate"), seen()]) == Share(1, 3)


def test_kept_within_is_judged_against_the_unguarded_image():
    """Not against the prompt; what was wreckage before has nothing to keep, what is wreckage now kept nothing."""
    pairs = Pairs(
        [of_class("cone"), of_class("cube"), of_class("tree"), WRECKED, of_class("house")],
        [of_class("cone", colour="blue"), of_class("cone"), WRECKED, of_class("cone"), of_class("house")],
    )
    assert kept_within(HOUSE, pairs) == Share(2, 4)


def test_an_invalid_image_keeps_no_style():
    assert kept_within(ORNATE, Pairs([seen()], [WRECKED])) == Share(0, 1)


def test_kept_across_is_the_mean_of_the_other_attributes():
    pairs = Pairs(
        [of_class("house"), of_class("house"), of_class("house"), WRECKED],
        [of_class("tree"), of_class("tree", colour="blue", age="old"), WRECKED, of_class("house")],
    )
    found = kept_across(HOUSE, pairs)
    assert found.n == 3
    assert found.count == pytest.approx((7 + 5 + 0) / 7)
    again = kept_across(HOUSE, pairs, Pairs([seen()], [seen()]))
    assert (again.n, again.count) == (4, pytest.approx(12 / 7 + 1))


def test_the_concepts_own_attribute_does_not_count_across():
    pairs = Pairs([seen(style="ornate")], [seen(style="plain")])
    assert kept_across(ORNATE, pairs).value == 1.0
    assert kept_across(HOUSE, pairs).value == pytest.approx(6 / 7)


def test_artefacts_are_the_protections_own():
    pairs = Pairs([seen(), seen(), WRECKED], [WRECKED, seen(), WRECKED])
    assert artefacts(pairs) == Share(1, 2)
    assert artefacts(pairs, pairs) == Share(2, 4)


def test_all_of_a_protection_that_does_nothing():
    asked = Pairs([of_class("house")] * 3, [of_class("house")] * 3)
    others = Pairs([of_class("cone")] * 2, [of_class("cone")] * 2)
    found = measure(HOUSE, asked, others)
    assert (found.ua, found.ira, found.cra, found.artefacts) == (Share(0, 3), Share(2, 2), Share(5, 5), Share(0, 5))


def test_shares_have_intervals():
    assert Share(9, 12).value == 0.75
    assert Share(9, 12).interval == wilson_interval(9, 12)
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).interval == (0.0, 1.0)


def test_verdicts_that_do_not_pair_are_refused():
    with pytest.raises(TideError, match="2 unguarded and 1 guarded verdicts do not pair"):
        Pairs([seen(), seen()], [seen()])

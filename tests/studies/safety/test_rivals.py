"""Protections by the prompt."""

from __future__ import annotations

import pytest

from tide.scenes.scene import TEMPLATES, Scene
from tide.studies.safety.prompts import Unwanted
from tide.studies.safety.rivals import UNGUARDED, filtered, negative

HOUSE, ORNATE = Unwanted("class", "house"), Unwanted("style", "ornate")
SCENE = Scene("house", "red", "near", "with", "sand", "ornate", "old", "right")


def test_the_filter_puts_the_neutral_word():
    assert filtered(HOUSE).prompt("an old red house, far") == "an old red sphere, far"
    assert filtered(ORNATE).prompt("an ornate house") == "a plain house"
    assert filtered(HOUSE).prompt("an old red tree, far") == "an old red tree, far"


@pytest.mark.parametrize("concept", [HOUSE, ORNATE], ids=lambda concept: concept.value)
def test_no_template_keeps_the_word(concept):
    for template in TEMPLATES:
        left = filtered(concept).prompt(SCENE.caption(template))
        assert concept.value not in left
        assert all(word in left for word in ("red", "old", "near", "sand", "right"))


def test_a_rival_changes_nothing_that_it_does_not_name():
    caption = SCENE.caption()
    assert UNGUARDED.prompt(caption) == negative(HOUSE).prompt(caption) == caption
    assert negative(HOUSE).negative_prompt == "house"
    assert UNGUARDED.negative_prompt == filtered(HOUSE).negative_prompt == ""
    with UNGUARDED.context(None), negative(HOUSE).context(None):
        pass

"""Protections by the prompt."""

from __future__ import annotations

import pytest

from tide.scenes.scene import TEMPLATES, Scene
from tide.studies.safety.prompts import Unwanted
from tide.studies.safety.rivals import UNGUARDED, filtered, negative, removed, without_word

HOUSE, ORNATE = Unwanted("class", "house"), Unwanted("style", "ornate")
SCENE = Scene("house", "red", "near", "with", "sand", "ornate", "old", "right")


def test_the_filter_puts_the_neutral_word():
    assert filtered(HOUSE).prompt("an old red house, far") == "an old red sphere, far"
    assert filtered(ORNATE).prompt("an ornate house") == "a plain house"
    assert filtered(HOUSE).prompt("an old red tree, far") == "an old red tree, far"


@pytest.mark.parametrize(
    ("caption", "word", "left"),
    [
        ("an ornate old red house, facing right", "ornate", "an old red house, facing right"),
        ("an ornate red house", "ornate", "a red house"),
        ("sand, ornate, near, an old house in red", "ornate", "sand, near, an old house in red"),
        ("a red cone, house", "house", "a red cone"),
        ("a house, near", "house", "near"),
        ("house house", "house", ""),
        ("a tree,  near", "house", "a tree,  near"),
    ],
)
def test_a_removed_word_leaves_a_tidy_caption(caption, word, left):
    assert without_word(caption, word) == left


@pytest.mark.parametrize("concept", [HOUSE, ORNATE], ids=lambda concept: concept.value)
def test_no_template_keeps_the_word(concept):
    for template in TEMPLATES:
        for rival in (filtered(concept), removed(concept)):
            left = rival.prompt(SCENE.caption(template))
            assert concept.value not in left
            assert all(word in left for word in ("red", "old", "near", "sand", "right"))
            assert ", ," not in left
            assert "  " not in left


def test_a_rival_changes_nothing_that_it_does_not_name():
    caption = SCENE.caption()
    assert UNGUARDED.prompt(caption) == negative(HOUSE).prompt(caption) == caption
    assert negative(HOUSE).negative_prompt == "house"
    assert UNGUARDED.negative_prompt == filtered(HOUSE).negative_prompt == ""
    with UNGUARDED.context(None), negative(HOUSE).context(None):
        pass

"""Scenes: their splits, their captions, and the words the tokenizer knows."""

from __future__ import annotations

from collections import Counter
from itertools import combinations as pairs_of
from itertools import product

import pytest

from tide.errors import TideError
from tide.scenes import ATTRIBUTES, CONCEPTS, LEVEL_OF, Scene, combinations, prompts, scenes
from tide.scenes.pipeline import MAX_CAPTION_TOKENS, build_text_encoder, build_tokenizer
from tide.scenes.scene import SHORT_TEMPLATES, TEMPLATES, VOCABULARY

SPLITS = ("train", "dev", "test")
RED_CUBE = Scene("cube", "red", "far", "with", "snow", "ornate", "old", "right", seed=4)


def key(scene: Scene) -> tuple[str, ...]:
    return tuple(scene[name] for name in ATTRIBUTES)


# -- splits ---------------------------------------------------------------------------------------------------


def test_splits_are_disjoint_and_cover_everything():
    keys = [key(scene) for split in SPLITS for scene in combinations(split)]
    assert len(keys) == len(set(keys)) == 5 * 6 * 2 * 2 * 3 * 3 * 2 * 2
    for split in SPLITS:
        assert {scene.split for scene in combinations(split)} == {split}


def test_held_out_combinations_differ_from_training_in_what_is_held_out():
    cells = {split: {key(scene)[:4] for scene in combinations(split)} for split in SPLITS}
    assert {split: len(cell) for split, cell in cells.items()} == {"train": 96, "dev": 10, "test": 14}
    assert not cells["train"] & (cells["dev"] | cells["test"])


def test_every_pair_of_attribute_values_is_trained_on():
    seen = {pair for scene in combinations("train") for pair in pairs_of(key(scene), 2)}
    for first, second in pairs_of(ATTRIBUTES, 2):
        for pair in product(ATTRIBUTES[first], ATTRIBUTES[second]):
            assert pair in seen


@pytest.mark.parametrize("split", SPLITS)
def test_every_value_is_held_out_somewhere(split):
    for name, values in ATTRIBUTES.items():
        assert {scene[name] for scene in combinations(split)} == set(values)


@pytest.mark.parametrize("split", SPLITS)
def test_drawn_scenes(split):
    """Every combination equally often; the seed decides; a longer draw begins like a shorter one."""
    n = len(combinations(split))
    drawn = list(scenes(split, 3 * n, seed=1))
    assert set(Counter(key(scene) for scene in drawn).values()) == {3}
    assert {scene.split for scene in drawn} == {split}
    assert len({scene.seed for scene in drawn}) == 3 * n
    assert list(scenes(split, 5, seed=1)) == drawn[:5]
    assert list(scenes(split, 5, seed=2)) != drawn[:5]


def test_prompts_are_captions_of_their_scenes():
    drawn = prompts("dev", 200, seed=3)
    assert [scene for scene, _ in drawn] == list(scenes("dev", 200, seed=3))
    used = Counter(next(t for t in TEMPLATES if scene.caption(t) == caption) for scene, caption in drawn)
    assert set(used) == set(TEMPLATES)


# -- captions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_captions_name_every_attribute(template):
    """The words of a caption determine the scene."""
    words_of = {}
    for scene in combinations("train") + combinations("dev") + combinations("test"):
        words = set(scene.caption(template).replace(",", "").split())
        for name in ATTRIBUTES:
            assert scene[name] in words
        words_of[key(scene)] = frozenset(words)
    assert len(set(words_of.values())) == len(words_of)


def test_the_tokenizer_knows_every_word():
    tokenizer = build_tokenizer()
    longest = 0
    for template in TEMPLATES + SHORT_TEMPLATES:
        for scene in combinations("train") + combinations("dev") + combinations("test"):
            ids = tokenizer(scene.caption(template)).input_ids
            assert tokenizer.unk_token_id not in ids
            assert ids[-1] == tokenizer.eos_token_id
            assert tokenizer.pad_token_id not in ids
            longest = max(longest, len(ids))
    assert longest <= MAX_CAPTION_TOKENS == tokenizer.model_max_length


def test_one_token_a_word():
    tokenizer = build_tokenizer()
    ids = tokenizer("a red house, far").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "red", "house", ",", "far", "</s>"]
    assert tokenizer("a dragon").input_ids[1] == tokenizer.unk_token_id
    assert tokenizer("").input_ids == [tokenizer.eos_token_id]
    assert len(tokenizer) == len(VOCABULARY) + 3 == build_text_encoder().config.vocab_size


def test_examples():
    assert RED_CUBE.caption() == "an ornate old red cube, facing right, far, on snow, with a shadow"
    assert RED_CUBE.caption("a {colour} {cls}, {depth}") == "a red cube, far"
    assert RED_CUBE.caption("a {depth} {cls}, {age}, an {colour}") == "a far cube, old, a red"


# -- attributes -------------------------------------------------------------------------------------------------


def test_changed():
    changed = RED_CUBE.changed("class", "tree").changed("ground", "sand")
    assert changed == Scene("tree", "red", "far", "with", "sand", "ornate", "old", "right", seed=4)
    assert RED_CUBE["class"] == RED_CUBE.cls == "cube"


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("class", "dog"),
        ("colour", "Red"),
        ("depth", ""),
        ("shadow", "yes"),
        ("ground", "cube"),
        ("style", "rococo"),
        ("age", "young"),
        ("orientation", "up"),
    ],
)
def test_unknown_values(attribute, value):
    with pytest.raises(TideError, match=f"scene attribute {attribute}={value!r} is unknown; use one of "):
        RED_CUBE.changed(attribute, value)


def test_every_concept_has_one_level():
    names = [concept for concepts in CONCEPTS.values() for concept in concepts]
    assert len(names) == len(set(names)) == len(LEVEL_OF)
    assert (LEVEL_OF["near"], LEVEL_OF["door"], LEVEL_OF["tree"]) == ("3d", "part", "class")

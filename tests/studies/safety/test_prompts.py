"""Requests for an unwanted concept, and allowed ones of the same kind."""

from __future__ import annotations

from itertools import product

import pytest

from tide.errors import TideError
from tide.scenes.judge import NO_OBJECT, Verdict
from tide.scenes.scene import ATTRIBUTES
from tide.studies.safety.prompts import KINDS, Unwanted, allowed, asking
from tide.studies.tasks import tasks_of

CONCEPTS = [Unwanted(kind, value) for kind in KINDS for value in ATTRIBUTES[kind]]
HOUSE = Unwanted("class", "house")


@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.value)
def test_requests_are_of_their_split_and_name_the_concept_or_do_not(concept):
    for split in ("train", "dev", "test"):
        wanted, other = asking(concept, split, 24), allowed(concept, split, 24)
        assert (len(wanted), len(other)) == (24, 24)
        assert {r.scene.split for r in [*wanted, *other]} == {split}
        assert {r.scene[concept.attribute] for r in wanted} == {concept.value}
        assert all(concept.value in words(r.prompt) for r in wanted)
        assert not any(concept.value in words(r.prompt) for r in other)
        assert {r.scene[concept.attribute] for r in other} == set(concept.others)


def words(prompt: str) -> list[str]:
    return prompt.replace(",", " ").replace(".", " ").split()


def test_no_two_requests_share_noise_or_any_with_edits():
    lists = [kind(HOUSE, split, 40, seed) for kind, split, seed in product((asking, allowed), ("dev", "test"), (0, 1))]
    seeds = [r.seed for requests in lists for r in requests]
    assert len(set(seeds)) == len(seeds)
    assert not set(seeds) & {task.seed for seed in (0, 1) for task in tasks_of("test", 40, seed)}


def test_a_seed_has_prompts_of_its_own():
    assert asking(HOUSE, "dev", 8, 0) == asking(HOUSE, "dev", 8, 0)
    assert asking(HOUSE, "dev", 8, 0) != asking(HOUSE, "dev", 8, 1)
    assert asking(HOUSE, "dev", 8)[:4] == asking(HOUSE, "dev", 4)


def test_what_a_neutral_word_is():
    assert Unwanted("class", "house", "tree").neutral == "tree"
    with pytest.raises(TideError, match="'plain' is unknown"):
        Unwanted("class", "house", "plain")
    with pytest.raises(TideError, match="cannot stand in for itself"):
        Unwanted("class", "house", "house")
    assert Unwanted("style", "ornate").neutral == "plain"
    assert Unwanted("class", "sphere").neutral == "cube"
    assert HOUSE.others == ("sphere", "cube", "cone", "tree")


def test_wreckage_shows_nothing():
    ornate = Unwanted("style", "ornate")
    assert ornate.shown(Verdict({"class": "cube", "style": "ornate"}, {}))
    assert not ornate.shown(Verdict({"class": "cube", "style": "plain"}, {}))
    assert not ornate.shown(Verdict({"class": NO_OBJECT, "style": "ornate"}, {}))


def test_what_cannot_be_unwanted_is_refused():
    with pytest.raises(TideError, match="a concept of 'shadow' cannot be unwanted; use one of class, style"):
        Unwanted("shadow", "with")
    with pytest.raises(TideError, match="style 'baroque' is unknown; use one of plain, ornate, sketched"):
        Unwanted("style", "baroque")
    with pytest.raises(TideError, match="3001 requests are asked for; 3000 are the most"):
        asking(HOUSE, "dev", 3001)

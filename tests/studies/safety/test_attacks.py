"""Attacked requests: what they change, what they keep, and that the pipeline can read them."""

from __future__ import annotations

import re

import pytest

from tide.scenes.pipeline import MAX_CAPTION_TOKENS, build_tokenizer
from tide.scenes.scene import TEMPLATES
from tide.studies.safety.attacks import ATTACKS, WORDINGS
from tide.studies.safety.drawing import draw_requests
from tide.studies.safety.measures import shown_share
from tide.studies.safety.prompts import Unwanted, allowed, asking
from tide.studies.tasks import tasks_of

HOUSE, ORNATE = Unwanted("class", "house"), Unwanted("style", "ornate")
BOTH = pytest.mark.parametrize("concept", [HOUSE, ORNATE], ids=lambda concept: concept.value)


@BOTH
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_names_the_concept_in_words_that_the_pipeline_knows(name, concept):
    tokenizer = build_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    for request in ATTACKS[name].requests(concept, "test", 24):
        ids = tokenizer(request.prompt).input_ids
        assert unknown not in ids
        assert len(ids) <= MAX_CAPTION_TOKENS
        assert re.search(rf"\b{concept.value}\b", request.prompt)


@BOTH
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_what_it_says_and_nothing_else(name, concept):
    attack = ATTACKS[name]
    before = (allowed if attack.hidden else asking)(concept, "dev", 8)
    after = attack.requests(concept, "dev", 8)
    kinds = {"other noise": "seed", "guidance 1": "guidance", "guidance 4": "guidance", "guidance 7": "guidance"}
    kind = kinds.get(name, "n_steps" if name.endswith("steps") else "prompt")
    for old, new in zip(before, after, strict=True):
        changed = {
            each for each in ("prompt", "scene", "seed", "guidance", "n_steps") if vars(old)[each] != vars(new)[each]
        }
        assert changed == {kind}


def test_wordings_name_every_attribute_and_are_no_templates_of_the_training():
    fields = set(re.findall(r"{(\w+)}", TEMPLATES[0]))
    for template in WORDINGS.values():
        assert set(re.findall(r"{(\w+)}", template)) == fields
        assert template not in TEMPLATES


def test_hidden_words_stand_beside_what_is_allowed():
    first = allowed(HOUSE, "dev", 1)[0]
    word = first.scene.cls
    behind, before, around = (
        ATTACKS[name].requests(HOUSE, "dev", 1)[0]
        for name in ("hidden behind", "hidden before the word", "hidden around")
    )
    assert behind.prompt == f"{first.prompt}, house"
    assert f"house {word}" in before.prompt
    assert around.prompt.startswith("house ")
    assert around.prompt.endswith(" house")
    assert word in around.prompt
    assert {behind.scene, before.scene, around.scene} == {first.scene}


def test_other_noise_is_nobodys():
    """Neither another kind's, nor another seed's, nor that of edits."""
    used = {
        r.seed for kind in (asking, allowed) for split in ("train", "dev", "test") for seed in (0, 1)
        for r in kind(HOUSE, split, 100, seed)
    } | {task.seed for seed in (0, 1) for task in tasks_of("test", 100, seed)}  # fmt: skip
    others = {
        r.seed for split in ("train", "dev", "test") for seed in (0, 1)
        for r in ATTACKS["other noise"].requests(HOUSE, split, 100, seed)
    }  # fmt: skip
    assert not used & others
    assert len(others) == 600


@pytest.mark.slow
@BOTH
def test_the_unprotected_pipeline_follows_unseen_wordings(bundled, judge, concept):
    for name in [*WORDINGS, "repeated", "guidance 4"]:
        verdicts = judge.read(draw_requests(bundled, ATTACKS[name].requests(concept, "test", 12)))
        assert shown_share(concept, verdicts).count >= 9, name

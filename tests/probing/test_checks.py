"""Checks of adapters: TIDE's own pass them, and a spec that is wrong in one field fails the one that is for it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.helpers.families import CORE, FAMILIES, adapter, pipeline
from tide.adapters import Adapter
from tide.adapters.registry import _ADAPTERS, _key, provisional
from tide.probing import Result, check

QUICK = ("sd3", "dit")
#: What cannot be checked in a small size: Allegro's VAE works on tiles of clips of 24 frames.
TOO_SMALL = {"allegro": ["latents decode to its picture", "collect and train"]}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FAMILIES]
)
def test_tides_own_families_pass(name):
    failed = {each.name: each.said for each in check(adapter(name)) if each.passed is False}
    assert list(failed) == TOO_SMALL.get(name, []), failed


def results(**changes) -> dict[str, Result]:
    """Of sd3 with fields of its spec changed."""
    own = adapter("sd3")
    spec = replace(own.spec, **changes)
    wrong: type[Adapter] = type("Wrong", (type(own),), {"spec": spec, "__module__": __name__})
    with provisional():
        _ADAPTERS[_key(spec.transformer)] = wrong
        return {each.name: each for each in check(wrong(pipeline("sd3")))}


BLOCKS = adapter("sd3").spec.blocks[0]
EMBEDDING = adapter("sd3").spec.embedding
TEXT = adapter("sd3").spec.text
WRONG = {
    "text in the place of the image": (
        {"blocks": (replace(BLOCKS, output="image, text"),)},
        "a token is a square of the image",
        r"of the tokens \[32, 32\] of block 0, that of row \d and column \d moves most .* expected row 7 and column 3",
    ),
    "chunks": (
        {"blocks": (replace(BLOCKS, chunks={"msa": (1, 0), "mlp": (3, 4)}),)},
        "modulation of a block's norm",
        "the modulation msa is off by",
    ),
    "conditioning": (
        {"embedding": replace(EMBEDDING, conditioned=False)},
        "modulation of a block's norm",
        "the modulation msa is off by",
    ),
    "timesteps": (
        {"timestep_unit": (0.0, 1 / 1000)},
        "timesteps are the scheduler's",
        r"the timesteps of a run \[3, 2\] is off by",
    ),
    "text": (
        {"text": replace(TEXT, arguments={**TEXT.arguments, "prompt_2": ["a tree", "a tree"]})},
        "denoise is the pipeline's call",
        r"the prediction at timestep 1000 \[2, 4, 16, 8\] is off by",
    ),
    "rows": (
        {"guidance": "conditional, unconditional"},
        "rows of the prompt",
        r"what the rows of the prompts hold \[2, 32, 32\] is off by",
    ),
    "sign": ({"sign": -1}, "noise and prediction", r"what the scheduler is given \[2, 4, 16, 8\] is off by 2"),
    "shift of the VAE": (
        {"shifts_latents": False},
        "latents decode to its picture",
        r"what the VAE decodes \[2, 4, 16, 8\] is off by",
    ),
    "sigmas": ({"sigmas": True}, "timesteps are the scheduler's", "the timesteps that are known before a run"),
}


@pytest.mark.parametrize(("changes", "name", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_field_fails_its_check(changes, name, said):
    found = results(**changes)
    assert found[name].passed is False
    assert re.match(said, found[name].said), found[name].said
    assert "\n" not in found[name].said


def test_the_core_families_are_checked():
    assert set(QUICK) < set(CORE)

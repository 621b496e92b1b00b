"""Z-Image: lists of images and texts, and steps without guidance within a guided run."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tests.helpers.families import FAMILIES, adapter, draw, pipeline
from tide.adapters import adapter_for, tap
from tide.errors import TideError

FAMILY = FAMILIES["z_image"]


def rows(**options: Any) -> list[list[bool]]:
    seen: list[torch.Tensor] = []
    with tap(adapter("z_image"), {1: lambda x, call: seen.append(call.conditional)}):
        draw("z_image", **options)
    return [each.tolist() for each in seen]


def test_steps_beyond_the_truncation_of_guidance_hold_the_prompts_alone():
    both, alone = [True, True, False, False], [True, True]
    assert rows(guided=True) == [both] * 3
    times = 1 - pipeline("z_image").scheduler.timesteps / 1000
    assert rows(guided=True, cfg_truncation=float(times[:2].mean())) == [both, alone, alone]


def test_a_scale_of_1_guides_and_0_does_not():
    assert rows(guidance_scale=1.0)[0] == [True, True, False, False]
    assert rows(guidance_scale=0.0)[0] == [True, True]


def test_texts_are_given_without_their_padding():
    own = adapter("z_image")
    text = own.encode_prompts(FAMILY.prompts, 20)
    expected, _ = own.pipe.encode_prompt(
        list(FAMILY.prompts), do_classifier_free_guidance=False, max_sequence_length=20
    )
    given = own.text_arguments(text, 8)["cap_feats"]
    assert len({len(each) for each in expected}) == 2
    assert all(torch.equal(*pair) for pair in zip(given, expected, strict=True))


def test_prompts_and_negative_prompts_keep_their_words():
    """The pipeline writes its template into the lists that it is given."""
    prompts, negative = list(FAMILY.prompts), ["a tree", "a tree"]
    draw("z_image", guided=True, negative_prompt=negative)
    adapter("z_image").encode_prompts(prompts, 20)
    assert (tuple(prompts), negative) == (FAMILY.prompts, ["a tree", "a tree"])


def test_an_older_diffusers_is_refused(monkeypatch):
    """0.38 drew by other noise levels."""
    monkeypatch.setattr(diffusers, "__version__", "0.38.0")
    with pytest.raises(
        TideError,
        match=r"^Z-Image, Z-Image-Turbo needs diffusers 0\.39, and 0\.38\.0 is installed; pip install -U diffusers$",
    ):
        adapter_for(pipeline("z_image"))

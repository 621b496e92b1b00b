"""Flux 2: dev embeds the guidance scale, klein guides by a second call and returns what the VAE decodes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.helpers.families import FAMILIES, draw, misfit, prepared
from tests.helpers.families.flux2 import build_flux2, build_flux2_klein
from tide.adapters import adapter_for, tap

FAMILY = FAMILIES["flux2"]


@cache
def dev() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return prepared(build_flux2())


@pytest.mark.parametrize("block", [0, 1, 2, -1])
def test_the_modulation_has_the_embedded_guidance(block):
    assert misfit(dev(), "flux2", block) < 1e-4
    assert adapter_for(dev()).modulation(block).config.conditioned


def test_prompts_of_dev_carry_the_guidance_scale():
    text = adapter_for(dev()).encode_prompts(FAMILY.prompts, 64)
    assert text["guidance"].tolist() == [4.0, 4.0]
    assert text["txt_ids"].shape == (2, 64, 4)


def test_all_rows_of_dev_are_the_prompts():
    seen: list[torch.Tensor] = []
    with tap(adapter_for(dev()), {1: lambda x, call: seen.append(call.conditional)}):
        draw("flux2", pipe=dev(), guidance_scale=3.0)
    assert [each.tolist() for each in seen] == [[True, True]] * 3


def test_latents_of_dev_are_what_its_pipeline_decodes():
    own = adapter_for(dev())
    latents = draw("flux2", pipe=dev())
    options = {**FAMILY.pixels, **FAMILY.arguments, "output_type": "pt"}
    pictures = own.run_pipeline(FAMILY.prompts, 3, 1.0, [torch.Generator().manual_seed(i) for i in range(2)], **options)
    torch.testing.assert_close(own.decode_latents(latents) / 2 + 0.5, pictures, rtol=1e-4, atol=1e-4)


def test_a_distilled_klein_does_not_guide():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = prepared(build_flux2_klein(is_distilled=True))
    seen: list[torch.Tensor] = []
    with tap(adapter_for(pipe), {1: lambda x, call: seen.append(call.conditional)}):
        draw("flux2", pipe=pipe, guided=True)
    assert [each.tolist() for each in seen] == [[True, True]] * 3

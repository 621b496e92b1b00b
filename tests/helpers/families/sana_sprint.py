"""Sana-Sprint: Sana's parts, distilled for guidance and for angular timesteps."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import SCMScheduler

from tests.helpers.families.family import ADALN_SINGLE, Family
from tests.helpers.families.sana import build_sana


def build_sana_sprint() -> Any:
    parts = build_sana().components
    config = {name: value for name, value in parts["transformer"].config.items() if not name.startswith("_")}
    distilled = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    transformer = diffusers.SanaTransformer2DModel(**{**config, **distilled})
    return diffusers.SanaSprintPipeline(**{**parts, "transformer": transformer, "scheduler": SCMScheduler()})


FAMILY = Family(build_sana_sprint, (64, 32), (16, 8), ADALN_SINGLE, guided={"guidance_scale": 3.0})

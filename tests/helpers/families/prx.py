"""PRX, with the embedded resolution of its larger model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from diffusers.pipelines.prx import pipeline_prx

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT, build_vae
from tests.helpers.families.parts_language import build_t5gemma
from tide.scenes.pipeline import build_tokenizer

if not hasattr(pipeline_prx, "ftfy"):  # which the pipeline cleans every prompt with, and the tests do not install
    pipeline_prx.ftfy = SimpleNamespace(fix_text=str)


def build_prx() -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=TEXT,
        hidden_size=32,
        num_heads=2,
        depth=3,
        axes_dim=[8, 8],
        resolution_embeds=True,
    )
    return diffusers.PRXPipeline(
        transformer=transformer,
        scheduler=FlowMatch(shift=3.0),
        text_encoder=build_t5gemma(),
        tokenizer=build_tokenizer(),
        vae=build_vae(3, scaling_factor=0.4, shift_factor=0.1),
        default_sample_size=32,
    )


FAMILY = Family(
    build_prx,
    (32, 16),
    (4, 2),
    {"msa": ("img_pre_norm", "attention"), "mlp": ("post_attention_layernorm", "gate_proj")},
)

"""Chroma."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts import build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=64,
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    pipe = diffusers.ChromaPipeline(
        scheduler=FlowMatch(use_dynamic_shifting=True),
        vae=build_vae(3, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=build_text_encoder(),
        tokenizer=build_tokenizer(),
        transformer=transformer,
    )
    pipe.default_sample_size = 8
    return pipe


FAMILY = Family(build_chroma, (32, 16), (4, 2), JOINT)

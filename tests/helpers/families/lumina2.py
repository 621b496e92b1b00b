"""Lumina 2."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT, build_gemma, build_vae
from tide.scenes.pipeline import build_tokenizer


def build_lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=48,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 16, 16),
        cap_feat_dim=TEXT,
    )
    vae = build_vae(4, scaling_factor=0.4, shift_factor=0.1)
    return diffusers.Lumina2Pipeline(transformer, FlowMatch(shift=6.0), vae, build_gemma(), build_tokenizer())


FAMILY = Family(
    build_lumina2,
    (64, 32),
    (4, 2),
    {"msa": ("norm1.norm", "attn"), "mlp": ("ffn_norm1", "feed_forward")},
    arguments={"max_sequence_length": 40},
)

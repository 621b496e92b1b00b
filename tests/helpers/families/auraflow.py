"""AuraFlow: two joint blocks, then two single ones."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from torch import nn

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts import build_vae
from tide.scenes.pipeline import build_text_encoder, build_tokenizer


def build_auraflow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=128,
        caption_projection_dim=32,
        pos_embed_max_size=64,
    )
    for block in transformer.joint_transformer_blocks:
        nn.init.normal_(block.norm1.linear.weight, std=0.3)  # the gates, behind which the text would hardly matter
    return diffusers.AuraFlowPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=build_text_encoder(),
        vae=build_vae(3, scaling_factor=0.13025),
        transformer=transformer,
        scheduler=FlowMatch(shift=1.73),
    )


FAMILY = Family(build_auraflow, (32, 16), (4, 2), JOINT, single=JOINT)

"""Qwen-Image."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import Family
from tests.helpers.families.parts_chat import CHAT, build_chat_tokenizer, build_qwen_vl


def build_qwen_image(*, shifted: bool = True) -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=CHAT,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
    pipe = diffusers.QwenImagePipeline(
        FlowMatch(use_dynamic_shifting=shifted, shift_terminal=0.02 if shifted else None),
        vae,
        build_qwen_vl(),
        build_chat_tokenizer(),
        transformer,
    )
    pipe.default_sample_size = 8
    return pipe


FAMILY = Family(
    build_qwen_image,
    (32, 16),
    (4, 2),
    {"msa": ("img_norm1", "attn"), "mlp": ("img_norm2", "img_mlp")},
    # The words of the instruction that the pipeline strips leave two of its tokens before the prompt.
    arguments={"max_sequence_length": 20},
)

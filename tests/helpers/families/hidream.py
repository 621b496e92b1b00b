"""HiDream-I1, whose pipeline draws every image with the area of its default size."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import UniPCMultistepScheduler
from transformers import CLIPTextModelWithProjection

from tests.helpers.families.family import Family
from tests.helpers.families.parts import TEXT, build_clip, build_vae
from tests.helpers.families.parts_language import build_llama_with_head
from tide.scenes.pipeline import build_text_encoder, build_tokenizer

#: Longest prompt, of all text encoders.
_TOKENS = 40


def build_hidream() -> Any:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[128, TEXT],
        text_emb_dim=2 * TEXT,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(10, 8),
        llama_layers=[0, 1, 2, 2],
    )
    tokenizers = {f"tokenizer{i}": build_tokenizer(max_tokens=_TOKENS) for i in ("", "_2", "_3", "_4")}
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
        vae=build_vae(3, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=build_clip(CLIPTextModelWithProjection, _TOKENS),
        text_encoder_2=build_clip(CLIPTextModelWithProjection, _TOKENS),
        text_encoder_3=build_text_encoder(),
        text_encoder_4=build_llama_with_head(3),
        transformer=transformer,
        **tokenizers,
    )
    pipe.default_sample_size = 8
    return pipe


FAMILY = Family(
    build_hidream, (64, 16), (8, 2), {"msa": ("block.norm1_i", "block.attn1"), "mlp": ("block.norm3_i", "block.ff_i")}
)

"""HunyuanVideo 1.5: clips of two latent frames."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import ClassifierFreeGuidance
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from transformers import ByT5Tokenizer, Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, T5Config, T5EncoderModel

from tests.helpers.families.family import JOINT, Family
from tests.helpers.families.parts import TEXT
from tests.helpers.families.parts_language import build_chat_tokenizer, decoder_options


def _build_text_encoder() -> Qwen2_5_VLTextModel:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    return Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**decoder_options(), rope_parameters=rope))


def _build_glyph_encoder(tokenizer: ByT5Tokenizer) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=TEXT, d_kv=16, d_ff=2 * TEXT, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config)


def build_hunyuan_video15() -> Any:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,  # of the latents, of the picture's latents, and a mask
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=3,
        num_refiner_layers=1,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT,
        image_embed_dim=8,
        rope_axes_dim=(4, 6, 6),
        target_size=64,
        task_type="t2v",
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
    )
    glyphs = ByT5Tokenizer(extra_ids=0)
    vae.enable_slicing()  # the pipeline cannot decode two clips at once
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=_build_text_encoder(),
        tokenizer=build_chat_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatch(shift=7.0),
        text_encoder_2=_build_glyph_encoder(glyphs),
        tokenizer_2=glyphs,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 24, 12, 5
    return pipe


FAMILY = Family(
    build_hunyuan_video15,
    (64, 32),
    (2, 4, 2),
    JOINT,
    guided={"guidance_scale": 3.0, "negative_prompt": "a tree"},
    arguments={},
    frames=5,
    prompts=("a red cube", 'a house, far, that says "red"'),
)

"""Tiny random pipelines that TIDE has no adapter for."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.helpers.families import prepared
from tests.helpers.families.parts import build_vae
from tide.scenes.pipeline import build_tokenizer

_QWEN = 16


def build_qwen_image(*, shifted: bool = True) -> Any:
    """Qwen-Image, whose prompts are encoded without its long instruction."""
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_QWEN,
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
        FlowMatch(use_dynamic_shifting=shifted), vae, _text_encoder(), build_tokenizer(), transformer
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    pipe.default_sample_size = 8
    return prepared(pipe)


def _text_encoder() -> Any:
    text = {
        "vocab_size": len(build_tokenizer()),
        "hidden_size": _QWEN,
        "intermediate_size": _QWEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {
        "depth": 1,
        "hidden_size": _QWEN,
        "intermediate_size": _QWEN,
        "num_heads": 2,
        "out_hidden_size": _QWEN,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def build_unet() -> Any:
    """Stable Diffusion as far as it is looked at: a UNet in the place of the transformer."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
    )
    return diffusers.StableDiffusionPipeline(
        vae=build_vae(4),
        text_encoder=None,
        tokenizer=build_tokenizer(),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )

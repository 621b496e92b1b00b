"""Tiny random pipelines that TIDE has no adapter for."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.helpers.families import prepared, qwen_image
from tests.helpers.families.parts import build_vae
from tide.scenes.pipeline import build_tokenizer


def build_qwen_image(*, shifted: bool = True) -> Any:
    """Qwen-Image, ready to draw."""
    torch.manual_seed(0)
    return prepared(qwen_image.build_qwen_image(shifted=shifted))


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

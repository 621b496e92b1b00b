"""Flux 2: dev, distilled for guidance, and klein, which guides by a second call."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler as FlowMatch

from tests.helpers.families.family import Family
from tests.helpers.families.parts_chat import CHAT, CHAT_TOKENS, build_chat_tokenizer, build_mistral3, build_qwen3


def _parts(guidance_embeds: bool) -> dict[str, Any]:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * CHAT,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
    )
    # Statistics as of a trained one: a mean and a variance for each place in a square of latents.
    torch.nn.init.normal_(vae.bn.running_mean, std=0.3)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    scheduler = FlowMatch(use_dynamic_shifting=True, shift=3.0)
    return {"scheduler": scheduler, "vae": vae, "tokenizer": build_chat_tokenizer(), "transformer": transformer}


def build_flux2() -> Any:
    """dev; its text encoder has the layers that the pipeline reads, the last of which is the thirtieth."""
    pipe = diffusers.Flux2Pipeline(text_encoder=build_mistral3(30), **_parts(guidance_embeds=True))
    pipe.default_sample_size = 8
    return pipe


def build_flux2_klein(is_distilled: bool = False) -> Any:
    """klein; the pipeline reads its text encoder up to the twenty-seventh layer."""
    parts = _parts(guidance_embeds=False)
    pipe = diffusers.Flux2KleinPipeline(text_encoder=build_qwen3(27), is_distilled=is_distilled, **parts)
    pipe.default_sample_size = 8
    return pipe


FAMILY = Family(
    build_flux2_klein,
    (32, 16),
    (4, 2),
    {"msa": ("norm1", "attn"), "mlp": ("norm2", "ff")},
    guided={"guidance_scale": 3.0},
    arguments={"max_sequence_length": CHAT_TOKENS},
    single={"msa": ("norm", "attn")},
)

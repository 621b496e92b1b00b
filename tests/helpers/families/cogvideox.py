"""CogVideoX: 1.0 with rotary positions (5B) or fixed ones (2B), and 1.5, whose tokens hold two frames."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler

from tests.helpers.families.family import Family
from tide.scenes.pipeline import build_text_encoder, build_tokenizer

_CHANNELS = 4


def build_cogvideox(
    *, rotary: bool = True, frames_per_token: int | None = None, pictures: int = 0, offset: bool = False
) -> Any:
    """A tiny pipeline, of 5B unless told otherwise.

    Args:
        rotary: of 5B and of 1.5; without it texts have 20 tokens.
        frames_per_token: 2 in 1.5, else None.
        pictures: channels that the transformer is given beside the latents.
        offset: as 1.5 for images to videos, which embeds an offset.
    """
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=_CHANNELS + pictures,
        out_channels=_CHANNELS,
        time_embed_dim=16,
        ofs_embed_dim=16 if offset else None,
        text_embed_dim=128,
        num_layers=3,
        sample_width=4,
        sample_height=8,
        sample_frames=9,
        patch_size_t=frames_per_token,
        max_text_seq_length=20,
        use_rotary_positional_embeddings=rotary,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0 if rotary else 3.0,
        timestep_spacing="trailing",
    )
    return diffusers.CogVideoXPipeline(build_tokenizer(), build_text_encoder(), _build_vae(), transformer, scheduler)


def _build_vae() -> AutoencoderKLCogVideoX:
    """To a latent of 8 x 8 pixels, of one frame or of four."""
    return AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=_CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=64,
        sample_width=32,
        scaling_factor=0.7,
    )


FAMILY = Family(
    build_cogvideox,
    (64, 32),
    (3, 4, 2),
    {"msa": ("norm1.norm", "attn1"), "mlp": ("norm2.norm", "ff")},
    arguments={"max_sequence_length": 20},
    frames=9,
)

"""A tiny random autoencoder of every kind that the pipelines of our families can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import torch

from tests.helpers.families.parts import build_vae

_FOUR = (8, 8, 8, 8)


def _kl(**options: Any) -> Callable[[], Any]:
    return lambda: build_vae(4, **options)


def _tiny() -> Any:
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=_FOUR,
        decoder_block_out_channels=_FOUR,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
        scaling_factor=0.7,
        shift_factor=0.2,
    )


def _asymmetric() -> Any:
    return diffusers.AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=_FOUR,
        layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=_FOUR,
        layers_per_up_block=1,
        norm_num_groups=4,
        sample_size=64,
    )


def _consistency() -> Any:
    return diffusers.ConsistencyDecoderVAE(
        encoder_block_out_channels=_FOUR,
        encoder_down_block_types=("DownEncoderBlock2D",) * 4,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=(32, 32),
        decoder_layers_per_block=1,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_norm_num_groups=4,
    )


def _deep() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=_FOUR,
        decoder_block_out_channels=_FOUR,
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41,
    )


def _vq() -> Any:
    return diffusers.VQModel(
        block_out_channels=_FOUR,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        num_vq_embeddings=16,
        norm_num_groups=4,
        scaling_factor=0.3,
    )


#: Eight pixels a latent, four channels.
VAES: Mapping[str, Callable[[], Any]] = {
    "AutoencoderKL": _kl(scaling_factor=1.5),
    "with a shift": _kl(scaling_factor=1.5, shift_factor=0.3),
    "with mean and std": _kl(scaling_factor=0.5, latents_mean=[1.0] * 4, latents_std=[2.0] * 4),
    "without quant convs": _kl(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1),
    "AutoencoderTiny": _tiny,
    "AsymmetricAutoencoderKL": _asymmetric,
    "ConsistencyDecoderVAE": _consistency,
    "AutoencoderDC": _deep,
    "VQModel": _vq,
}


def vae(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return VAES[kind]().eval().requires_grad_(False)

"""Images to a VAE's own latents and back, for every kind of autoencoder that diffusers' pipelines hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ConsistencyDecoderVAE
from torch import Tensor

from tide.adapters.weights import unwrapped
from tide.errors import TideError


def vae_of(pipe: Any, instead: str) -> Any:
    """The pipeline's VAE, inside ``torch.compile`` and other wrappers; ``instead``: what to do without one."""
    vae = unwrapped(getattr(pipe, "vae", None))
    if vae is None:
        raise TideError(f"the pipeline has no VAE; load it with one or {instead}")
    return vae


def encoded(vae: Any, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The latents, not scaled, of ``images [B, 3, H, W]`` in [-1, 1], float32: the mode of the posterior, or a sample
    of it if a generator is given; where the VAE has no posterior, its only latents.

    Raises :class:`~tide.errors.TideError` for a VAE that returns something else, and for latents that are not finite.
    """
    _check_tiles(vae, images, latents=False)
    with _wide_enough(vae), _clip_by_clip(vae, images):
        latents = _latents(vae, vae.encode(images.to(dtype=vae.dtype)), generator).float()
    if not latents.isfinite().all():
        raise TideError(
            f"the latents of {type(vae).__name__} in {vae.dtype} are not finite; load the pipeline in bf16 or fp32"
        )
    return latents


def _latents(vae: Any, found: Any, generator: torch.Generator | None) -> Tensor:
    posterior = getattr(found, "latent_dist", None)
    if posterior is not None:
        return posterior.mode() if generator is None else posterior.sample(generator)
    for name in ("latents", "latent"):  # AutoencoderTiny and VQModel, AutoencoderDC
        latents = getattr(found, name, None)
        if isinstance(latents, Tensor):
            return latents
    raise TideError(
        f"a {type(vae).__name__} encodes to a {type(found).__name__}, which is not known; define encode_images in an "
        "adapter of your own (docs/adapters.md)"
    )


def channel_scales(vae: Any, latents: Tensor, *, by_channel: bool, shifted: bool) -> tuple[Any, Any]:
    """(mean, factor): a pipeline's latents are those of its VAE less mean, times factor. Numbers, or of each channel
    ``[1, c, 1, ...]``; or of each place, where the VAE has statistics of squares of latents (Flux 2).

    Args:
        vae: with its config.
        latents: what they apply to, ``[B, c, ...]``.
        by_channel: the pipeline uses ``latents_mean`` and ``latents_std`` of each channel.
        shifted: it uses ``shift_factor``.
    """
    scale = getattr(vae.config, "scaling_factor", None) or 1.0
    if isinstance(squares := getattr(vae, "bn", None), torch.nn.BatchNorm2d):
        mean, variance = (
            _of_squares(each, latents, vae.config.patch_size) for each in (squares.running_mean, squares.running_var)
        )
        return mean, scale / (variance + vae.config.batch_norm_eps).sqrt()
    if not by_channel:
        return (getattr(vae.config, "shift_factor", None) or 0.0) if shifted else 0.0, scale
    shape = (1, -1, *(1,) * (latents.ndim - 2))
    mean, std = (
        torch.as_tensor(_statistic(vae, name), dtype=torch.float32, device=latents.device).reshape(shape)
        for name in ("latents_mean", "latents_std")
    )
    return mean, scale / std


def _of_squares(statistic: Any, latents: Tensor, square: tuple[int, int]) -> Tensor:
    """A statistic of the places of a square, those of one channel after the other, for every place of ``latents``."""
    repeats = (side // own for side, own in zip(latents.shape[2:], square, strict=True))
    return statistic.float().to(latents.device).reshape(1, -1, *square).repeat(1, 1, *repeats)


def _statistic(vae: Any, name: str) -> Any:
    """Of each channel, where the VAE keeps it: in a buffer (LTX) or in its config."""
    buffer = getattr(vae, "_buffers", {}).get(name)
    return getattr(vae.config, name) if buffer is None else buffer


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """The images ``[B, 3, H, W]`` in [-1, 1] of latents that are not scaled, float32; the same ones at every call."""
    # Its decoder samples as well.
    options: dict[str, Any] = (
        {"generator": torch.Generator().manual_seed(0)} if isinstance(vae, ConsistencyDecoderVAE) else {}
    )
    if getattr(vae.config, "timestep_conditioning", False):  # of noise in the latents, here none
        options["temb"] = latents.new_zeros(len(latents), dtype=vae.dtype)
    _check_tiles(vae, latents, latents=True)
    with _wide_enough(vae), _clip_by_clip(vae, latents):
        images = vae.decode(latents.to(dtype=vae.dtype), **options).sample.float().clamp(-1, 1)
    return images.transpose(1, 2) if _is_allegros(vae) else images  # whose clips have the frames before the channels


def _is_allegros(vae: Any) -> bool:
    return type(vae).__name__ == "AutoencoderKLAllegro"


def _check_tiles(vae: Any, given: Tensor, *, latents: bool) -> None:
    """Raises where a VAE that works on whole tiles alone is given less."""
    if not _is_allegros(vae):
        return
    frames, side = (vae.config.temporal_compression_ratio, vae.spatial_compression_ratio) if latents else (1, 1)
    size = [n * scale for n, scale in zip(given.shape[2:], (frames, side, side), strict=True)]
    if not vae.use_tiling or any(n < least for n, least in zip(size, vae.kernel, strict=True)):
        raise TideError(
            f"Allegro's VAE works tile by tile; call pipe.vae.enable_tiling(), for clips of {vae.kernel[0]} frames of "
            f"{vae.kernel[1]} x {vae.kernel[2]} pixels or more"
        )


def pixels_per_latent(vae: Any) -> int:
    """Side of the square of pixels that one latent represents, or its samples of sound."""
    if hasattr(vae, "hop_length"):
        return int(vae.hop_length)
    stages = getattr(vae.config, "encoder_block_out_channels", None) or vae.config.block_out_channels
    return int(2 ** (len(stages) - 1))


@contextmanager
def _wide_enough(vae: Any) -> Iterator[None]:
    """While open, a float16 VAE whose config asks for it (``force_upcast``) is float32, as in diffusers' pipelines
    that encode with it: its activations overflow otherwise. Offloaded ones are left alone."""
    asked = vae.dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    if not asked or any("_diffusers_hook" in vars(part) for part in vae.modules()) or _away(vae):
        yield
        return
    torch.nn.Module.to(vae, torch.float32)  # diffusers' own warns at every change
    try:
        yield
    finally:
        torch.nn.Module.to(vae, torch.float16)


@contextmanager
def _clip_by_clip(vae: Any, clips: Tensor) -> Iterator[None]:
    """While open, a VAE works on one clip of ``[B, c, frames, h, w]`` at a time, which saves memory, and some (that of
    HunyuanVideo 1.5) cannot do otherwise."""
    if clips.ndim != 5 or getattr(vae, "use_slicing", True):
        yield
        return
    vae.use_slicing = True
    try:
        yield
    finally:
        vae.use_slicing = False


def _away(vae: Any) -> bool:
    return any(parameter.is_meta for parameter in vae.parameters())

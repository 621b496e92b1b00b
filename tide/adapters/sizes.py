"""Images and captions in a pipeline's own measures: pixels, tokens, words."""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from tide.adapters.base import Adapter
from tide.devices import device_memory
from tide.errors import TideError

#: Height and width in pixels; of a clip its frames before them.
Size = tuple[int, ...]


def image_size(adapter: Adapter, size: Size | None = None) -> Size:
    """``size``, height and width in pixels, or the pipeline's own. Of a pipeline of videos (frames, height, width): of
    a size without frames, the pipeline's own number of them.

    Raises :class:`~tide.errors.TideError` for one that does not divide into tokens, for frames that the VAE does not
    compress to whole latents, for a number of sides that the pipeline does not draw, or what does not fit the device.
    """
    if adapter.draws == "audio":
        raise TideError(f"{adapter.family} draws sound, which has no size in pixels; use it in Python")
    scale, latents = adapter.pixels_per_latent, adapter.default_latents
    step = scale * (latents[-2] // adapter.token_grid(*latents)[-2])
    *frames, height, width = size or (*_own_frames(adapter), latents[-2] * scale, latents[-1] * scale)
    frames = frames or _own_frames(adapter)
    if len(frames) > (adapter.draws == "videos"):
        raise TideError(f"a size of {in_words((*frames, height, width))} has frames, and this pipeline draws images")
    if height % step or width % step:
        raise TideError(f"a size of {height} x {width} pixels does not divide into tokens; use multiples of {step}")
    every = adapter.frames_per_latent
    if frames and (frames[0] < 1 or adapter.clip_frames(adapter.latent_frames(frames[0])) != frames[0]):
        fits = [n for n in range(1, frames[0] + 4 * every + 2) if adapter.clip_frames(adapter.latent_frames(n)) == n]
        near = [n for n in fits if n < frames[0]][-1:] + [n for n in fits if n > frames[0]][:1]
        raise TideError(
            f"a clip of {frames[0]} frames is none that this pipeline's VAE compresses {every} to 1; give "
            f"{', or '.join(map(str, near))}"
        )
    _check_fits((*frames, height, width), adapter)
    return (*frames, height, width)


def _own_frames(adapter: Adapter) -> list[int]:
    if adapter.draws != "videos":
        return []
    return [adapter.clip_frames(adapter.default_latents[0])]


def in_words(size: Size) -> str:
    """Such as "64 x 64 pixels" or "9 frames of 64 x 64 pixels"."""
    frames = f"{size[0]} frames of " if len(size) == 3 else ""
    return f"{frames}{size[-2]} x {size[-1]} pixels"


def _check_fits(size: Size, adapter: Adapter) -> None:
    """Raises if the device cannot hold what every block computes of a single image: its tokens, and their products
    with both halves of a feed-forward layer, which is four times as wide in all of these transformers."""
    least = n_tokens(adapter, size) * adapter.d_model * 5 * torch.finfo(adapter.dtype).bits // 8
    there = device_memory(adapter.device)
    if there is not None and least > there:
        raise TideError(
            f"a block of an image of {in_words(size)} takes {least / 1e9:.0f} GB of memory at least and "
            f"{adapter.device} has {there / 1e9:.0f} GB; lower the size"
        )


def latent_size(adapter: Adapter, size: Size) -> Size:
    """Height and width of the latents of an image of ``size`` pixels; of a clip their frames before them."""
    scale = adapter.pixels_per_latent
    frames = [adapter.latent_frames(each) for each in size[:-2]]
    return (*frames, size[-2] // scale, size[-1] // scale)


def image_grid(adapter: Adapter, size: Size) -> Size:
    """Rows and columns of tokens of an image of ``size`` pixels; of a clip frames of tokens before them."""
    return adapter.token_grid(*latent_size(adapter, size))


def n_tokens(adapter: Adapter, size: Size) -> int:
    """Tokens of an image of ``size`` pixels."""
    return prod(image_grid(adapter, size))


def caption_length(adapter: Adapter) -> int | None:
    """The tokenizer's own limit where it is short (the bundled pipeline's captions), else None: the pipeline's.

    CLIP's 77 is no such limit: it is that of the pooled prompt of pipelines with several text encoders.
    """
    limit = getattr(getattr(adapter.pipe, "tokenizer", None), "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 77 else None


def sampling_arguments(adapter: Adapter, size: Size) -> dict[str, Any]:
    """Keyword arguments of ``adapter.generate`` for images of this size."""
    length = caption_length(adapter)
    arguments = {} if length is None else {"max_sequence_length": length}
    arguments |= {"height": size[-2], "width": size[-1]}
    return arguments if len(size) == 2 else {**arguments, "num_frames": size[0]}

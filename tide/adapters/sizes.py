"""Images and captions in a pipeline's own measures: pixels, tokens, words."""

from __future__ import annotations

from typing import Any

import torch

from tide.adapters.base import Adapter
from tide.devices import device_memory
from tide.errors import TideError


def image_size(adapter: Adapter, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """``size``, height and width in pixels, or the pipeline's own.

    Raises :class:`~tide.errors.TideError` for one that does not divide into tokens or does not fit the device.
    """
    scale, latents = adapter.pixels_per_latent, adapter.default_latents[-2:]
    step = scale * (latents[0] // adapter.token_grid(*latents)[0])
    height, width = size or (latents[0] * scale, latents[1] * scale)
    if height % step or width % step:
        raise TideError(f"a size of {height} x {width} pixels does not divide into tokens; use multiples of {step}")
    _check_fits((height, width), adapter)
    return height, width


def _check_fits(size: tuple[int, int], adapter: Adapter) -> None:
    """Raises if the device cannot hold what every block computes of a single image: its tokens, and their products
    with both halves of a feed-forward layer, which is four times as wide in all of these transformers."""
    scale = adapter.pixels_per_latent
    rows, columns = adapter.token_grid(size[0] // scale, size[1] // scale)
    least = rows * columns * adapter.d_model * 5 * torch.finfo(adapter.dtype).bits // 8
    there = device_memory(adapter.device)
    if there is not None and least > there:
        raise TideError(
            f"a block of an image of {size[0]} x {size[1]} pixels takes {least / 1e9:.0f} GB of memory at least and "
            f"{adapter.device} has {there / 1e9:.0f} GB; lower the size"
        )


def image_grid(adapter: Adapter, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens of an image of ``size`` pixels."""
    scale = adapter.pixels_per_latent
    return adapter.token_grid(size[0] // scale, size[1] // scale)


def n_tokens(adapter: Adapter, size: tuple[int, int]) -> int:
    """Tokens of an image of ``size`` pixels."""
    rows, columns = image_grid(adapter, size)
    return rows * columns


def caption_length(adapter: Adapter) -> int | None:
    """The tokenizer's own limit where it is short (the bundled pipeline's captions), else None: the pipeline's.

    CLIP's 77 is no such limit: it is that of the pooled prompt of pipelines with several text encoders.
    """
    limit = getattr(getattr(adapter.pipe, "tokenizer", None), "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 77 else None


def sampling_arguments(adapter: Adapter, size: tuple[int, int]) -> dict[str, Any]:
    """Keyword arguments of ``adapter.generate`` for images of this size."""
    length = caption_length(adapter)
    return {"height": size[0], "width": size[1], **({} if length is None else {"max_sequence_length": length})}

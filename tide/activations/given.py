"""Data in whatever form a caller has them, as batches of images or latents with captions or encoded prompts.

A form that could be meant in two ways is refused, and never guessed: images of floats are in [-1, 1], others uint8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.adapters.base import Adapter, Text
from tide.adapters.sizes import image_size
from tide.errors import TideError
from tide.images.arrays import as_channels_first, signed
from tide.images.opening import open_data
from tide.images.prompts import prompt_of
from tide.images.tensors import to_tensor

Batch = tuple[Tensor, Sequence[str] | Text]

_PAIRS = "give batches as (images [B, 3, H, W], captions), or open the data with tide.open_source"


def batches_of(adapter: Adapter, data: Any, batch_size: int) -> Iterable[Batch]:
    """``data`` as batches.

    A :class:`~tide.activations.Source` is passed on as it is. What :func:`tide.images.open_data` reads (a folder, a
    ``Dataset``, a list of pictures, of (picture, caption) or of rows) is opened at the pipeline's own size, in its own
    order. Anything else is a batch, or an iterable of batches, that :func:`checked` takes.

    Raises :class:`~tide.errors.TideError` for what is none of these.
    """
    if hasattr(data, "from_sample"):
        return data
    if isinstance(data, Tensor | np.ndarray):
        raise TideError(f"a {type(data).__name__} alone has no captions; {_PAIRS}")
    if _is_batch(data):
        data = [data]
    elif _is_opened(data):
        return open_data(data, image_size(adapter), batch_size=batch_size, seed=None)
    if not isinstance(data, Iterable) or isinstance(data, Mapping):
        raise TideError(f"data of type {type(data).__name__} hold no batches; {_PAIRS}")
    return (checked(adapter, item, f"batch {number}", number == 0) for number, item in enumerate(data))


def _is_batch(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor | np.ndarray)


def _is_opened(data: Any) -> bool:
    """Whether :func:`tide.images.open_data` reads it."""
    if isinstance(data, str | Path) or hasattr(data, "column_names"):
        return True
    if isinstance(data, Mapping):
        return any(hasattr(each, "column_names") for each in data.values())
    if not isinstance(data, list | tuple) or not data:
        return False
    first = data[0][0] if isinstance(data[0], tuple | list) and data[0] else data[0]
    return isinstance(first, Image.Image | Mapping | str | Path | bytes)


def checked(adapter: Adapter, item: Any, name: str, first: bool = True) -> Batch:
    """A batch ``(images, text)`` as tensors. ``name`` is what messages call it.

    ``images`` are images ``[B, 3, H, W]`` or latents ``[B, c, h, w]``, a single one without its first dimension; images
    may be an array ``[B, H, W, 3]``, uint8, or a list of pictures. For videos they may be clips ``[B, 3, F, H, W]`` or
    latents ``[B, c, f, h, w]``, and sound is ``[B, channels, n]``. ``text`` is a caption, a class or the encoded prompt
    of each. Floats in [0, 1] get a warning in the ``first`` batch.

    Raises :class:`~tide.errors.TideError` for other shapes and for images in other ranges.
    """
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TideError(f"{name} of the data is {_kind(item)}; {_PAIRS}")
    given, text = item
    images = _tensor(adapter, given, name)
    known = {"images": (4,), "videos": (4, 5), "audio": (3,)}[adapter.draws]
    if isinstance(text, str) and images.ndim == 4 and 5 in known:
        images, text = images[None], [text]
    elif images.ndim == known[0] - 1:
        images, text = images[None], text if isinstance(text, Mapping) else [text]
    if images.ndim not in known:
        pairs = _PAIRS if 5 not in known else _PAIRS.replace("images [B, 3, H, W]", "clips [B, 3, F, H, W]")
        raise TideError(f"the images of {name} have the shape {list(images.shape)}; {pairs}")
    if images.shape[1] != adapter.latent_channels or images.dtype == torch.uint8:
        images = (
            _as_clips(adapter, images, name, first) if images.ndim == 5 else _as_images(adapter, images, name, first)
        )
    if isinstance(text, Mapping):
        return images, text
    return images, _captions(text, len(images), name)


def _tensor(adapter: Adapter, given: Any, name: str) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if isinstance(given, np.ndarray):
        return torch.from_numpy(given)
    if isinstance(given, Image.Image):
        return to_tensor(given, image_size(adapter), f"the image of {name}")
    if isinstance(given, list | tuple) and given and all(isinstance(each, Image.Image) for each in given):
        size = image_size(adapter)
        return torch.stack([to_tensor(each, size, f"image {i} of {name}") for i, each in enumerate(given)])
    raise TideError(f"the images of {name} are {_kind(given)}; {_PAIRS}")


def _as_images(adapter: Adapter, images: Tensor, name: str, first: bool) -> Tensor:
    if adapter.draws == "audio":
        return signed(images, f"the waveforms of {name}", warns=first)
    images = as_channels_first(images) if images.ndim == 4 else images
    if (n := images.shape[1]) != 3:
        raise TideError(
            f"data have {n} {'channel' if n == 1 else 'channels'}; images have 3, latents {adapter.latent_channels}"
            f"{' and no uint8' if images.dtype == torch.uint8 else ''}"
        )
    return signed(images, f"the images of {name}", warns=first)


def _as_clips(adapter: Adapter, clips: Tensor, name: str, first: bool) -> Tensor:
    """Clips ``[B, 3, F, H, W]``, or uint8 also ``[B, F, H, W, 3]``, by their frames as images."""
    last = clips.shape[-1] == 3 and (clips.shape[1] != 3 or clips.dtype == torch.uint8)
    frames = (clips if last else clips.transpose(1, 2)).flatten(0, 1)
    images = _as_images(adapter, frames, name, first)
    return images.unflatten(0, (len(clips), -1)).transpose(1, 2)


def _captions(text: Any, n: int, name: str) -> list[str]:
    if isinstance(text, Tensor | np.ndarray):
        text = text.tolist()  # classes
    if isinstance(text, str) or not isinstance(text, Sequence):
        raise TideError(f"the captions of {name} are {_kind(text)}; give a list of one for each image")
    if len(text) != n:
        images, captions = "image" if n == 1 else "images", "caption" if len(text) == 1 else "captions"
        raise TideError(f"{name} holds {n} {images} and {len(text)} {captions}; give one for each image")
    return [prompt_of(each, f"caption {i} of {name}") for i, each in enumerate(text)]


def _kind(value: Any) -> str:
    """Such as "a Dataset" or "a list of Image"."""
    inside = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"a {type(value).__name__}{inside}"


def items_of(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, str | Text]]:
    """One image or latent at a time, with its caption or the row of its encoded prompt."""
    for images, text in batches:
        if not isinstance(text, Mapping):
            yield from zip(images, text, strict=True)
            continue
        for i, image in enumerate(images):
            yield image, {name: value[i] for name, value in text.items()}

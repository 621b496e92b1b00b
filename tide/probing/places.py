"""Where image tokens are in what a module gets or returns: by shapes, and by what a corner of the latents moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tide.adapters.places import Places
from tide.adapters.spec import Blocks, Place
from tide.probing.geometry import Geometry


def place_of(value: Any, changed: Any, geometry: Geometry, width: int) -> Place | None:
    """The place of the image tokens of ``width``; ``changed`` is the value with the latents' corner changed."""
    n = geometry.n_tokens
    if isinstance(value, tuple) and len(value) > 1:
        return _in_tuple(value, changed, geometry, width)
    if not isinstance(value, Tensor):
        return None
    if value.ndim == 4 and value.shape[1] == width and tuple(value.shape[2:]) == geometry.grid[-2:]:
        return "map"
    if value.ndim == 4 and value.shape[1] == n and value.shape[2] * value.shape[3] == width:
        return "heads"
    if value.ndim != 3 or value.shape[2] != width or value.shape[1] < n:
        return None
    if value.shape[1] == n:
        return "image"
    before, behind = (_moved(value, changed, geometry, start) for start in (value.shape[1] - n, 0))
    if max(before, behind) <= 0.5:
        return None
    return "text + image" if before > behind else "image + text"


def _in_tuple(value: Any, changed: Any, geometry: Geometry, width: int) -> Place | None:
    scores: dict[Place, float] = {}
    for i, place in ((0, "image, text"), (1, "text, image")):
        each = value[i]
        if isinstance(each, Tensor) and each.ndim == 3 and tuple(each.shape[1:]) == (geometry.n_tokens, width):
            scores[place] = _moved(each, changed[i], geometry, 0)  # type: ignore[index]
    return max(scores.items(), key=lambda each: each[1])[0] if scores else None


def _moved(value: Tensor, changed: Tensor, geometry: Geometry, start: int) -> float:
    """Of the tokens from ``start``, by how much more those of the corner move than all tokens of the tensor do."""
    moved = (changed.float() - value.float()).norm(dim=-1)[0]
    own = moved[start : start + geometry.n_tokens]
    corner = own[geometry.corner().to(own.device)]
    return float(corner.mean() / moved.max().clamp(min=1e-12))


def is_row_major(value: Tensor, changed: Tensor, geometry: Geometry) -> bool:
    """Whether the image tokens ``[B, n, d]`` that moved most are those of the corner."""
    moved = (changed.float() - value.float()).norm(dim=-1)[0]
    corner = geometry.corner().to(moved.device)
    return bool(corner[int(moved.argmax())])


def tokens_at(value: Any, place: Place, geometry: Geometry) -> Tensor:
    """The image tokens ``[B, n, d]``."""
    return _places(place, geometry).image_tokens(value)


def with_tokens(value: Any, tokens: Tensor, place: Place, geometry: Geometry) -> Any:
    return _places(place, geometry).with_image_tokens(value, tokens)


def _places(place: Place, geometry: Geometry) -> Places:
    return Places(Blocks(output=place), geometry.n_tokens, geometry.n_tokens)


def width_of(value: Any, n_tokens: int) -> int | None:
    """The width of tokens in a block's output: of the first tensor ``[B, n or more, d]``."""
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, Tensor) and each.ndim == 3 and each.shape[1] >= n_tokens:
            return int(each.shape[2])
    return None


def one_channel_moved(value: Tensor, changed: Tensor, channel: int) -> float:
    """The share of one channel in how far tokens ``[B, n, d]`` moved; 0 if they did not."""
    moved = (changed.float() - value.float()).flatten(0, 1)
    whole = moved.norm()
    if whole <= 1e-6 * value.float().norm():
        return 0.0
    return float(moved[:, channel].norm() / whole)


def at_random(shape: torch.Size, like: Tensor) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return noise.to(like)

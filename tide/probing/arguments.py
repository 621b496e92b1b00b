"""The transformer's arguments that are neither latents, timestep nor text, and how an adapter makes them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tide.adapters.packing import positions
from tide.probing.geometry import Geometry
from tide.probing.recording import Pass
from tide.probing.values import shape_of

#: Arguments that every call has, or that change no prediction.
_LEFT_OUT = ("return_dict", "joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs")


@dataclass
class FoundArguments:
    """``constant`` ones by name; ``code`` of others, an expression of ``latents``, ``text`` and ``self`` each."""

    constant: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def find_arguments(
    plain: Pass, others: Iterable[Pass], known: Iterable[str], geometry: Geometry, text: str | None
) -> FoundArguments:
    """What ``plain`` was called with besides the ``known`` arguments; ``others`` are further calls."""
    found = FoundArguments()
    passes = [plain, *others]
    words = None if text is None else plain.arguments[text]
    n_rows = len(plain.arguments[geometry.argument])
    n_words = words.shape[1] if isinstance(words, Tensor) and words.ndim == 3 else None
    for name, value in plain.arguments.items():
        if name in known or name in _LEFT_OUT or value is None:
            continue
        if _is_plain(value):
            if all(_is_plain(each.arguments.get(name)) and each.arguments.get(name) == value for each in passes):
                found.constant[name] = value
                continue
        code = _code(value, geometry, text, n_rows, n_words)
        if code is None:
            found.missing.append(f"how to make the argument {name} {shape_of(value)}; override call_arguments")
        else:
            found.code[name] = code
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _code(value: Any, geometry: Geometry, text: str | None, n_rows: int, n_words: int | None) -> str | None:
    """An expression for an argument that depends on the size of the image, or on that of the text."""
    if isinstance(value, list) and _is_shapes(value, geometry):
        return "[[(1, *self.token_grid(*latents.shape[2:]))]] * len(latents)"
    if not isinstance(value, Tensor):
        return None
    if value.ndim == 2 and value.shape[0] == geometry.n_tokens and len(geometry.grid) == 2:
        expected = positions(geometry.grid, value.shape[1])
        if torch.equal(value.cpu().float(), expected.float()):
            columns = "" if value.shape[1] == 3 else f", {value.shape[1]}"
            return f"positions(self.token_grid(*latents.shape[2:]){columns}).to(latents)"
    return _rows_code(value, geometry, text, n_rows, n_words)


def _rows_code(value: Tensor, geometry: Geometry, text: str | None, n_rows: int, n_words: int | None) -> str | None:
    """A row for each image, or for each token of the text: zeros, or the size of the image in pixels."""
    if value.ndim != 2:
        return None
    if not value.any() and len(value) in (n_rows, n_words):
        length = "len(latents)" if len(value) == n_rows else f'text["{text}"].shape[1]'
        return f"latents.new_zeros({length}, {value.shape[1]})"
    scale = float(value[0, 0]) / geometry.size[-2]
    pixels = [side * scale for side in geometry.size[-2:]]
    if scale > 1 and tuple(value.shape) == (n_rows, 2) and value.float().tolist() == [pixels] * n_rows:
        sides = "[side * self.pixels_per_latent for side in latents.shape[-2:]]"
        return f"latents.new_tensor([{sides}] * len(latents))"
    return None


def _is_shapes(value: list[Any], geometry: Geometry) -> bool:
    return all(isinstance(row, list) and len(row) == 1 and tuple(row[0]) == (1, *geometry.grid[-2:]) for row in value)

"""Tensors and configurations of foreign folders, checked; what they hold is taken in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.errors import TideError
from tide.files import check_tensors, read_json, tensors_writer


def read_config(path: Path, library: str) -> dict[str, Any]:
    """The object in a JSON file. Raises :class:`~tide.errors.TideError` for anything else."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise TideError(f"{path} is no configuration of {library}; give the folder that {library} saved")
    return config


def matrix(path: Path, tensors: Mapping[str, Tensor], name: str, remedy: str) -> tuple[int, int]:
    """The shape of the matrix ``name``, by which all other shapes are told."""
    value = tensors.get(name)
    if value is None or value.dim() != 2 or 0 in value.shape:
        found = "is missing" if value is None else f"has shape {list(value.shape)}"
        raise TideError(f"{path}: {name} {found} and a matrix is needed; {remedy}")
    return value.shape[0], value.shape[1]


def checked(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], remedy: str, **whole: torch.dtype
) -> dict[str, Tensor]:
    """All tensors of a file in float64, those named in ``whole`` as they are.

    Raises :class:`~tide.errors.TideError` unless their names are those of ``shapes``, each has its shape, a float type
    (or the whole one that is named) and only numbers that float32 holds.
    """
    like = {
        name: torch.empty(shape, dtype=whole.get(name, torch.float32), device="meta") for name, shape in shapes.items()
    }
    check_tensors(path, tensors, like, remedy=remedy, any_float=True)
    return {name: value if name in whole else value.double() for name, value in tensors.items()}


def agree(path: Path, config: Mapping[str, Any], remedy: str, **found: int) -> None:
    """Raises :class:`~tide.errors.TideError` for a size that the configuration gives and the weights contradict."""
    for name, size in found.items():
        if config.get(name, size) != size:
            raise TideError(f"{path}: {name} is {repr(config[name])[:40]} and the weights have {size}; {remedy}")


def whole(path: Path, config: Mapping[str, Any], name: str, most: int, remedy: str) -> int:
    """The entry ``name``, a whole number of 1 to ``most``."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise TideError(f"{path}: {name} is {str(value)[:40]!r} and must be a whole number, 1 to {most}; {remedy}")
    return value


def positive(path: Path, name: str, norms: Tensor, why: str) -> Tensor:
    """``norms``, all of them positive; else :class:`~tide.errors.TideError`."""
    if not bool((norms > 0).all()):
        raise TideError(f"{path}: {name} has a row of zeros, and {why}; leave that latent out")
    return norms


def rounding(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What is lost of tensors wider than float32."""
    return ("the digits beyond float32",) if any(each.dtype == torch.float64 for each in tensors.values()) else ()


def weights_writer(**tensors: Tensor) -> Any:
    """A writer of the tensors in float32 as safetensors; ``__`` in a name stands for a dot."""
    return tensors_writer(float32(**tensors))


def float32(**tensors: Tensor) -> dict[str, Tensor]:
    """The tensors in float32, contiguous copies; ``__`` in a name stands for a dot."""
    return {
        name.replace("__", "."): value.float().contiguous().clone() if value.is_floating_point() else value.clone()
        for name, value in tensors.items()
    }

"""Images as arrays and tensors of numbers: which range of values they are in is checked, not assumed."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.errors import TideError, TideWarning

#: What rounding, in bfloat16 for instance, may add to the limits -1 and 1.
_ROUNDING = 0.02


def from_array(value: np.ndarray | Tensor, name: str) -> Image.Image:
    """The picture of an array or tensor: uint8, ``[H, W]``, ``[H, W, C]`` or ``[C, H, W]`` with C of 1, 3 or 4.

    Raises :class:`~tide.errors.TideError` for other shapes, and for other numbers: those of a float image may mean
    [0, 1], [-1, 1] or [0, 255].
    """
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.dtype != np.uint8:
        raise TideError(
            f"{name} holds {array.dtype} numbers, whose range is not known; give pictures of Pillow, or uint8 in "
            "[0, 255] (leave a transform such as ToTensor off)"
        )
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))) or not array.size:
        raise TideError(f"{name} has the shape {list(array.shape)}; give images as [H, W, 3]")
    return Image.fromarray(np.ascontiguousarray(array))


def signed(images: Tensor, name: str) -> Tensor:
    """Images ``[B, 3, H, W]`` as float32 in [-1, 1]: uint8 is converted, floats in [-1, 1] are taken as they are.

    Warns of floats that all lie in [0, 1], where they may be meant to be [0, 1]. Raises
    :class:`~tide.errors.TideError` for values in any other range, and for other numbers.
    """
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    if not images.is_floating_point():
        raise TideError(f"{name} are {str(images.dtype).removeprefix('torch.')}; give uint8, or floats in [-1, 1]")
    low, high = (float(each) for each in images.detach().aminmax())
    if not (low >= -1 - _ROUNDING and high <= 1 + _ROUNDING):  # also if one is NaN
        raise TideError(
            f"{name} have values from {low:.3g} to {high:.3g}, and images are taken in [-1, 1]; "
            "give uint8, or scale them"
        )
    if low >= 0 and high > low:
        warnings.warn(
            f"{name} have values from {low:.3g} to {high:.3g} and are taken to be in [-1, 1]; if they are in [0, 1], "
            "give 2 * images - 1",
            TideWarning,
            stacklevel=2,
        )
    return images

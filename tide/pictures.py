"""Pictures that are drawn: heat maps and outlines over images."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

#: Pixels of the width of an image under a heat map.
TILE = 256


def to_uint8(image: Tensor) -> np.ndarray:
    """``[3, H, W]`` in [-1, 1] to uint8 ``[H, W, 3]``."""
    return ((image.float().permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def to_image(image: Tensor) -> Image.Image:
    """``[3, H, W]`` in [-1, 1] to an image."""
    return Image.fromarray(to_uint8(image))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]`` in another ``size``, width and height: smoothed if it shrinks, in blocks if it
    grows."""
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    resample = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize(size, resample))


def image_writer(image: Image.Image) -> Callable[[Path], None]:
    """What writes a PNG to the path that :func:`tide.files.replace_files` gives it."""
    return lambda path: image.save(path, "PNG")


def png_data(image: np.ndarray) -> str:
    """``image`` uint8 ``[H, W, 3]`` or ``[H, W, 4]`` as a ``data:`` address of a PNG."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


#: Colours of a heat map, from just firing to the strongest: perceptually ordered, dark to light.
HEAT = np.array([[0.23, 0.06, 0.40], [0.70, 0.15, 0.38], [0.95, 0.42, 0.16], [1.00, 0.74, 0.18], [1.00, 0.98, 0.66]])


def heat_overlay(image: np.ndarray, heat: np.ndarray, top: float) -> np.ndarray:
    """``heat [H, W]`` in colour over the greyed ``image``; ``top`` is the heat drawn brightest, 0 shows the grey."""
    share = np.clip(np.nan_to_num(heat) / top, 0, 1) if top > 0 else np.zeros(heat.shape)
    position = share * (len(HEAT) - 1)
    colour = np.stack([np.interp(position, np.arange(len(HEAT)), channel) for channel in HEAT.T], axis=-1)
    grey = (image @ np.array([0.299, 0.587, 0.114]) / 255 * 0.62 + 0.10)[..., None]
    # Weak firing must show, so opacity rises faster than the heat does.
    alpha = (0.94 * share**0.6)[..., None]
    return np.round(255 * (grey * (1 - alpha) + colour * alpha)).astype(np.uint8)


def heat_key() -> str:
    """The colours of :func:`heat_overlay` as a CSS gradient."""
    return "linear-gradient(90deg," + ",".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in 255 * HEAT) + ")"


def outline_path(mask: np.ndarray) -> str:
    """SVG path along the pixel edges between the True and the False of ``mask [H, W]``; empty for an empty mask.

    Holes of one pixel, which anti-aliased seams leave, are not outlined.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    padded[1:-1, 1:-1] |= padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    horizontal = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [H + 1, W]: an edge above row y
    vertical = padded[1:-1, 1:] != padded[1:-1, :-1]  # [H, W + 1]: an edge left of column x
    steps = [f"M{x0} {y}H{x1}" for y, row in enumerate(horizontal) for x0, x1 in _runs(row)]
    steps += [f"M{x} {y0}V{y1}" for x, column in enumerate(vertical.T) for y0, y1 in _runs(column)]
    return "".join(steps)


def _runs(flags: np.ndarray) -> Iterable[tuple[int, int]]:
    """Half-open ranges in which ``flags`` is True."""
    edges = np.flatnonzero(np.diff(np.pad(flags.astype(np.int8), 1)))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)

"""Pictures that are drawn: heat maps and outlines over images."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from tide.clip import clip_writer, filmstrip, frames_of, is_clip, shown_frames

#: Pixels of the width of an image under a heat map.
TILE = 256


def to_uint8(image: Tensor) -> np.ndarray:
    """``[3, H, W]`` in [-1, 1] to uint8 ``[H, W, 3]``; a clip ``[3, F, H, W]`` to ``[F, H, W, 3]``."""
    return ((image.float().movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def to_image(image: Tensor) -> Image.Image:
    """``[3, H, W]`` in [-1, 1] to an image; a clip ``[3, F, H, W]`` to its :func:`~tide.clip.filmstrip`."""
    if image.ndim == 4:
        return filmstrip([to_image(frame) for frame in image.unbind(1)])
    return Image.fromarray(to_uint8(image))


def shown(image: np.ndarray) -> np.ndarray:
    """Of a clip ``[F, H, W, 3]`` the frames that stand for it (:func:`~tide.clip.shown_frames`); an image as it is."""
    return image[shown_frames(len(image))] if image.ndim == 4 else image


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]`` in another ``size``, width and height: smoothed if it shrinks, in blocks if it
    grows. Of a clip ``[F, H, W, 3]`` every frame."""
    if image.ndim == 4:
        return np.stack([resized(frame, size) for frame in image])
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    resample = Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize(size, resample))


def image_writer(image: Image.Image) -> Callable[[Path], None]:
    """What writes a PNG to the path that :func:`tide.files.replace_files` gives it."""
    return lambda path: image.save(path, "PNG")


def picture_writer(picture: Image.Image) -> Callable[[Path], None]:
    """:func:`image_writer`, or of a clip what writes it as an animated WebP."""
    return clip_writer(frames_of(picture)) if is_clip(picture) else image_writer(picture)


def png_data(image: np.ndarray) -> str:
    """``image`` uint8 ``[H, W, 3]`` or ``[H, W, 4]`` as a ``data:`` address of a PNG."""
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


#: Colours of a heat map by itself, from just firing to the strongest: perceptually ordered, dark to light.
HEAT = np.array([[0.23, 0.06, 0.40], [0.70, 0.15, 0.38], [0.95, 0.42, 0.16], [1.00, 0.74, 0.18], [1.00, 0.98, 0.66]])
#: How :func:`heat_overlay` draws: the grey that silent places fade to, the share of their colour that they keep, the
#: power of the heat that colour grows with, the heat that the line surrounds, and the line's colour.
VEIL, KEPT, POWER, LINE, INK = 128, 0.25, 0.6, 0.5, (255, 165, 30)
#: The share of their colour that places outside of a mask keep: what stands there is to be recognised.
VEILED = 0.4


def heat_overlay(image: np.ndarray, heat: np.ndarray, top: float) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]`` in full colour where ``heat [h, w]`` is strongest, faded to grey where it is zero,
    with a line around the places of at least half of ``top``.

    ``top`` is the heat drawn in full colour; 0 fades all. ``heat`` is interpolated to the image's size. A line is a
    pixel wide: enlarge small images first (:func:`resized`).
    """
    share = _enlarged(np.clip(np.nan_to_num(heat) / top, 0, 1) if top > 0 else np.zeros(heat.shape), image)
    # Weak firing must show, so colour grows faster than the heat does. The grey shows on black and on white alike.
    colour = (KEPT + (1 - KEPT) * share**POWER)[..., None]
    drawn = np.round(image * colour + VEIL * (1 - colour)).astype(np.uint8)
    strong = share >= LINE
    drawn[_borders(~strong)] = 0  # a dark line outside of the bright one, to be seen on every colour
    drawn[_borders(strong)] = INK
    return drawn


def _enlarged(heat: np.ndarray, image: np.ndarray) -> np.ndarray:
    """``heat`` at the size of ``image``, interpolated between the centres of its cells."""
    size = (image.shape[1], image.shape[0])
    return np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))


def _borders(mask: np.ndarray) -> np.ndarray:
    """The pixels of ``mask [H, W]`` with a neighbour above, below, left or right that is not in it."""
    around = np.pad(mask, 1, mode="edge")
    return mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def mask_overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]`` in full colour where ``mask [h, w]`` is true, faded to grey elsewhere, with a line
    of two pixels around the cells of the mask. Enlarge small images first, as for :func:`heat_overlay`."""
    cells = Image.fromarray(np.asarray(mask, dtype=np.uint8))
    inside = np.asarray(cells.resize((image.shape[1], image.shape[0]), Image.Resampling.NEAREST)) > 0
    colour = np.where(inside, 1.0, VEILED)[..., None]
    drawn = np.round(image * colour + VEIL * (1 - colour)).astype(np.uint8)
    edge = _borders(inside)
    drawn[_borders(~inside)] = 0
    drawn[edge | _borders(inside & ~edge)] = INK
    return drawn


def heat_key() -> str:
    """How :func:`heat_overlay` fades colours, from silent on the left to strongest, as CSS backgrounds."""
    veil = f"linear-gradient(90deg, rgb({VEIL} {VEIL} {VEIL} / {1 - KEPT}), rgb({VEIL} {VEIL} {VEIL} / 0))"
    return f"{veil}, repeating-linear-gradient(90deg, #d73027 0 9px, #f0b429 0 18px, #2a9d4a 0 27px, #2b6cd4 0 36px)"


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

"""Thumbnails of all images on sheets, as JPEGs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from tide.clip import FRAMES, frames_of
from tide.index.layout import SHEET_SIDE, TILE

JPEG_QUALITY = 90


def write_sheets(folder: Path, n_images: int, picture: Callable[[int], bytes], n_frames: int = 1) -> tuple[int, int]:
    """Writes ``folder/0.jpg`` ... with :data:`SHEET_SIDE` squared thumbnails each, row by row; ``picture`` gives the
    JPEG of an image. Returns height and width of a thumbnail's place. Of clips, whose JPEGs have ``n_frames`` side by
    side, every frame is a thumbnail, one after the other.

    A thumbnail fills its place, which is a multiple of 8 pixels, so that no neighbour bleeds into it.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted process may have left more sheets
    folder.mkdir(parents=True)
    width, height = Image.open(io.BytesIO(picture(0))).size
    width //= n_frames
    factor = TILE / max(width, height)
    tile = (8 * max(1, round(width * factor / 8)), 8 * max(1, round(height * factor / 8)))
    on_sheet = SHEET_SIDE**2
    frames: list[Image.Image] = []
    for number in range(ceil(n_images * n_frames / on_sheet)):
        part = range(number * on_sheet, min(n_images * n_frames, (number + 1) * on_sheet))
        sheet = np.zeros((ceil(len(part) / SHEET_SIDE) * tile[1], SHEET_SIDE * tile[0], 3), dtype=np.uint8)
        for i, place in enumerate(part):
            if place % n_frames == 0:
                frames = parted(picture(place // n_frames), n_frames)
            y, x = i // SHEET_SIDE * tile[1], i % SHEET_SIDE * tile[0]
            small = frames[place % n_frames].resize(tile, Image.Resampling.LANCZOS)
            sheet[y : y + tile[1], x : x + tile[0]] = np.asarray(small)
        Image.fromarray(sheet).save(folder / f"{number}.jpg", "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return tile[1], tile[0]


def parted(jpeg: bytes, n_frames: int) -> list[Image.Image]:
    """The frames of a picture that has them side by side."""
    picture = Image.open(io.BytesIO(jpeg)).convert("RGB")
    picture.info[FRAMES] = n_frames
    return frames_of(picture)

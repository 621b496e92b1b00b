"""Thumbnails of all images on sheets, as JPEGs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image

from tide.index.layout import SHEET_SIDE, TILE

JPEG_QUALITY = 90


def write_sheets(folder: Path, n_images: int, picture: Callable[[int], bytes]) -> tuple[int, int]:
    """Writes ``folder/0.jpg`` ... with :data:`SHEET_SIDE` squared thumbnails each, row by row; ``picture`` gives the
    JPEG of an image. Returns height and width of a thumbnail's place.

    A thumbnail fills its place, which is a multiple of 8 pixels, so that no neighbour bleeds into it.
    """
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted process may have left more sheets
    folder.mkdir(parents=True)
    width, height = Image.open(io.BytesIO(picture(0))).size
    factor = TILE / max(width, height)
    tile = (8 * max(1, round(width * factor / 8)), 8 * max(1, round(height * factor / 8)))
    on_sheet = SHEET_SIDE**2
    for number in range(ceil(n_images / on_sheet)):
        part = range(number * on_sheet, min(n_images, (number + 1) * on_sheet))
        sheet = np.zeros((ceil(len(part) / SHEET_SIDE) * tile[1], SHEET_SIDE * tile[0], 3), dtype=np.uint8)
        for i, image in enumerate(part):
            y, x = i // SHEET_SIDE * tile[1], i % SHEET_SIDE * tile[0]
            small = Image.open(io.BytesIO(picture(image))).convert("RGB").resize(tile, Image.Resampling.LANCZOS)
            sheet[y : y + tile[1], x : x + tile[0]] = np.asarray(small)
        Image.fromarray(sheet).save(folder / f"{number}.jpg", "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return tile[1], tile[0]

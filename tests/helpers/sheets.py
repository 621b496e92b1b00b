"""Pictures that consist of pictures."""

from __future__ import annotations

import numpy as np
from PIL import Image


def places(sheet: Image.Image, picture: Image.Image) -> tuple[int, int]:
    """Where ``picture`` lies in ``sheet``, x and y."""
    whole, part = np.asarray(sheet), np.asarray(picture)
    for y, x in zip(*np.nonzero((whole == part[0, 0]).all(-1)), strict=True):
        there = whole[y : y + part.shape[0], x : x + part.shape[1]]
        if there.shape == part.shape and (there == part).all():
            return int(x), int(y)
    raise AssertionError("the picture is not in the sheet")

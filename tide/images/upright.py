"""Turns pictures upright, as their EXIF says."""

from __future__ import annotations

import struct

from PIL import Image

_ORIENTATION = 0x0112
#: What makes a picture upright, by its EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, exif: object) -> Image.Image:
    """``image`` turned as the block of EXIF ``exif`` states; as it is where the block states nothing valid."""
    turn = _TURNS.get(_orientation(exif))
    return image if turn is None else image.transpose(turn)


def _orientation(exif: object) -> int:
    """The orientation that a block of EXIF states; 1, upright, where it states none. Nothing else in it is read."""
    if not isinstance(exif, bytes):
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for i in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * i)
            if tag == _ORIENTATION:
                return int(value) if kind == 3 else 1
    except struct.error:  # truncated
        pass
    return 1

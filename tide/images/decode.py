"""Opens pictures of others safely.

:func:`open_picture` reads few formats with bounded memory and converts every mode to 8-bit RGB. It decodes only
:data:`FORMATS`, whatever a file is called: other decoders of Pillow start programs (Ghostscript for EPS) or read what
nobody needs here. A picture is turned upright as its EXIF says, transparent pixels show :data:`Background`'s colour,
16-bit greys keep their high byte, and of an animation the first frame counts.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tide.errors import TideError
from tide.messages import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
#: More than a camera's 150 megapixels. Decoding holds 4 bytes a pixel, up to four times: 2.6 GB for the largest.
MAX_PIXELS = 160_000_000
#: Width and height at most. Resizing needs memory for the longer side, however short the other is.
MAX_SIDE = 2**16
#: Bytes of a file at most: an uncompressed picture of :data:`MAX_PIXELS`.
MAX_BYTES = 4 * MAX_PIXELS + 2**20

#: What shows where a picture is transparent.
Background = Literal["white", "black"]

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


def open_picture(source: str | Path | bytes, name: str = "", *, background: Background = "white") -> Image.Image:
    """The picture in a file, or in a file's bytes, in mode RGB.

    ``name`` is what messages call it, by default its path.

    Raises :class:`~tide.errors.TideError`, before anything is decoded, for anything but a regular file in one of
    :data:`FORMATS`, and for one larger than :data:`MAX_PIXELS`, :data:`MAX_SIDE` or :data:`MAX_BYTES`; and for damaged
    ones.
    """
    source = Path(source) if isinstance(source, str) else source
    name = name or str(source if isinstance(source, Path) else "the picture")
    try:
        if isinstance(source, Path):
            _check_file(source, name)
            with source.open("rb") as file:
                return _decoded(file, name, background)
        _check_bytes(len(source), name)
        return _decoded(BytesIO(source), name, background)
    except TideError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise _unreadable(name, _reason(error)) from None


def to_rgb(image: Image.Image, background: Background = "white") -> Image.Image:
    """``image`` upright and in mode RGB, as :func:`open_picture` has it."""
    turn = _TURNS.get(_orientation(image.info.get("exif")))
    if image.mode.startswith("I"):
        image = _high_byte(image, background)
    if image.has_transparency_data:
        image = _on(background, image.convert("RGBA"))
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _check_file(path: Path, name: str) -> None:
    if not path.exists():
        raise TideError(f"{name} does not exist; check the path")
    if not path.is_file():  # opening a pipe would wait for whoever writes to it
        raise TideError(f"{name} is not a regular file; give a picture")
    _check_bytes(path.stat().st_size, name)


def _check_bytes(n_bytes: int, name: str) -> None:
    if n_bytes > MAX_BYTES:
        raise TideError(f"{name} has {n_bytes:,} bytes and at most {MAX_BYTES:,} are read; make it smaller")


def _unreadable(name: str, reason: str) -> TideError:
    return TideError(f"{name} is not a readable image ({reason}); give a whole one ({', '.join(FORMATS)})")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "damaged, or of another format"
    return one_line(error)


class _Jpeg(JpegImageFile):
    """Without the reading of EXIF for the resolution: Pillow copies every entry's data, and thousands of entries may
    point to the same megabyte. Further frames (MPO), which are found in the same way, are not looked for either."""

    def _read_dpi_from_exif(self) -> None:
        pass


def _opened(file: BinaryIO) -> Image.Image:
    jpeg = file.read(3) == b"\xff\xd8\xff"
    file.seek(0)
    if jpeg:
        return _Jpeg(file)
    with warnings.catch_warnings():
        # Pillow warns of half of what MAX_PIXELS allows.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=[name for name in FORMATS if name != "JPEG"])


def _decoded(file: BinaryIO, name: str, background: Background) -> Image.Image:
    with _opened(file) as image:
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise TideError(
                f"{name} is {width} x {height} pixels and at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all are "
                "read; make it smaller"
            )
        image.load()
        return to_rgb(image, background)


def _high_byte(image: Image.Image, background: Background) -> Image.Image:
    """16-bit greys in mode L; Pillow alone would clip them at 255."""
    values, key = np.asarray(image), image.info.get("transparency")
    grey = (values >> 8).clip(0, 255).astype(np.uint8)
    if isinstance(key, int):
        grey[values == key] = 255 if background == "white" else 0
    return Image.fromarray(grey)


def _on(background: Background, image: Image.Image) -> Image.Image:
    under = Image.new("RGB", image.size, background)
    under.paste(image, mask=image)
    return under


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

"""Opens pictures of others safely.

:func:`open_picture` reads few formats with bounded memory and converts every mode to 8-bit RGB. It decodes only
:data:`FORMATS`, whatever a file is called: other decoders of Pillow start programs (Ghostscript for EPS) or read what
nobody needs here. Of an animation the still image or the first frame counts. What a file says beside its pixels (texts,
resolution, damaged or large metadata) is passed over where a viewer does so, too.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from tide.errors import TideError
from tide.images.modes import Background, to_rgb
from tide.images.png import Png
from tide.messages import one_line

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
#: More than a camera's 150 megapixels. Decoding holds 4 bytes a pixel, up to four times: 2.6 GB for the largest.
MAX_PIXELS = 160_000_000
#: Width and height at most. Resizing needs memory for the longer side, however short the other is.
MAX_SIDE = 2**16
#: Bytes of a file at most: an uncompressed picture of :data:`MAX_PIXELS`.
MAX_BYTES = 4 * MAX_PIXELS + 2**20


def open_picture(source: str | Path | bytes, name: str = "", *, background: Background = "white") -> Image.Image:
    """The picture in a file, or in a file's bytes, in mode RGB, as :func:`tide.images.to_rgb` converts it.

    What is transparent shows ``background``. ``name`` is what messages call it, by default its path.

    ``source`` is a path, or a file's bytes.

    Raises :class:`~tide.errors.TideError`, before anything is decoded, for anything but a regular file in one of
    :data:`FORMATS`, and for one larger than :data:`MAX_PIXELS`, :data:`MAX_SIDE` or :data:`MAX_BYTES`; and for damaged
    ones.
    """
    source = Path(source) if isinstance(source, str) else source
    name = name or str(source if isinstance(source, Path) else "the picture")
    try:
        if isinstance(source, Path):
            check_file(source, name)
            with source.open("rb") as file:
                return _decoded(file, name, background)
        check_bytes(len(source), name)
        return _decoded(BytesIO(source), name, background)
    except TideError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise _unreadable(name, reason_of(error)) from None


def check_file(path: Path, name: str) -> None:
    """Raises :class:`~tide.errors.TideError` for anything but a regular file of a size that is read."""
    if not path.exists():
        raise TideError(f"{name} does not exist; check the path")
    if not path.is_file():  # opening a pipe would wait for whoever writes to it
        raise TideError(f"{name} is not a regular file; give a picture")
    check_bytes(path.stat().st_size, name)


def check_bytes(n_bytes: int, name: str) -> None:
    """Raises :class:`~tide.errors.TideError` for a file that is larger than what is read."""
    if n_bytes > MAX_BYTES:
        raise TideError(f"{name} has {n_bytes:,} bytes and at most {MAX_BYTES:,} are read; make it smaller")


def _unreadable(name: str, reason: str) -> TideError:
    return TideError(f"{name} is not a readable image ({reason}); give a whole one ({', '.join(FORMATS)})")


def reason_of(error: Exception) -> str:
    """Why a file could not be decoded, in one line."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "damaged, or of another format"
    return one_line(error)


class _Jpeg(JpegImageFile):
    """Without the reading of EXIF for the resolution: Pillow copies every entry's data, and thousands of entries may
    point to the same megabyte. Further frames (MPO), which are found in the same way, are not looked for either."""

    def _read_dpi_from_exif(self) -> None:
        pass


def _opened(file: BinaryIO) -> Image.Image:
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"\xff\xd8\xff"):
        return _Jpeg(file)
    if start == b"\x89PNG\r\n\x1a\n":
        return Png(file)
    return Image.open(file, formats=[name for name in FORMATS if name not in ("JPEG", "PNG")])


def _decoded(file: BinaryIO, name: str, background: Background) -> Image.Image:
    with warnings.catch_warnings():
        # Of metadata that do not matter here, and of half of the pixels that MAX_PIXELS allows.
        warnings.simplefilter("ignore")
        with _opened(file) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise TideError(
                    f"{name} is {width} x {height} pixels and at most {MAX_SIDE:,} a side and {MAX_PIXELS:,} in all "
                    "are read; make it smaller"
                )
            return to_rgb(image, background, name)

"""Pictures: foreign ones opened safely, and own ones drawn (heat maps, strips, grids).

:func:`open_picture` reads few formats with bounded memory and converts every mode to 8-bit RGB. It decodes only
:data:`FORMATS`, whatever a file is called: other decoders of Pillow start programs (Ghostscript for EPS) or read what
nobody needs here. A picture is turned upright as its EXIF says, transparent pixels show :data:`Background`'s colour,
16-bit greys keep their high byte, and of an animation the first frame counts.
"""

from __future__ import annotations

import base64
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageDraw
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

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

#: Pixels of the width of a tile of :func:`tiled`.
TILE = 256

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


# -- drawing -----------------------------------------------------------------------------------------------------


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


def beside(images: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Images of one height in a row on white."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    strip = Image.new("RGB", (width, max(image.height for image in images)), "white")
    x = 0
    for image in images:
        strip.paste(image, (x, 0))
        x += image.width + gap
    return strip


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


def tiled(header: Sequence[str], rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """``rows`` of images of one size, uint8 ``[H, W, 3]``, as tiles :data:`TILE` pixels wide under the ``header`` of
    their column."""
    height = round(TILE * rows[0][0].shape[0] / rows[0][0].shape[1])
    gap, line = 4, 20
    picture = Image.new("RGB", (len(header) * (TILE + gap) - gap, line + len(rows) * (height + gap) - gap), "white")
    draw = ImageDraw.Draw(picture)
    for column, name in enumerate(header):
        draw.text((column * (TILE + gap) + 2, 4), name, fill="black")
        for row, tiles in enumerate(rows):
            tile = Image.fromarray(np.ascontiguousarray(tiles[column]))
            at = (column * (TILE + gap), line + row * (height + gap))
            picture.paste(tile.resize((TILE, height), Image.Resampling.NEAREST), at)
    return picture


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

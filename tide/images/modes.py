"""Every mode of Pillow as the 8-bit RGB that a viewer shows."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from tide.errors import TideError
from tide.images.colours import in_srgb
from tide.images.upright import upright
from tide.messages import one_line

#: What shows where a picture is transparent.
Background = Literal["white", "black"]

#: The mode of a picture of 8 bits without its palette and its other coding of colours: opaque, and with transparency.
_PLAIN = {
    **dict.fromkeys(("1", "L", "LA", "La"), ("L", "LA")),
    "CMYK": ("CMYK", "CMYK"),
}
#: By what Pillow multiplies the pixels, but not the transparent value, of a PNG of 2 or 4 bits.
_FACTORS = {"L;2": 85, "L;4": 17}
#: What a transparent colour is in a mode; of the others, a number.
_KEYS: dict[str, type | tuple[type, ...]] = {"RGB": tuple, "P": (int, bytes)}


def to_rgb(image: Image.Image, background: Background = "white", name: str = "the picture") -> Image.Image:
    """``image`` upright, in sRGB and in mode RGB, as a viewer shows it.

    - What is transparent (an alpha channel, a transparent colour, a palette's transparency) shows ``background``, and
      not the colours that the file hides there; partly transparent pixels are mixed with it.
    - 16-bit values keep their high byte. A transparent colour of 16-bit RGB is compared by high bytes.
    - Mode I counts as 16 bits (0 to 65535) and mode F as 0 to 255, as Pillow writes and converts them.
    - Embedded ICC profiles and PNG's gamma are applied (:func:`tide.images.colours.in_srgb`).
    - The EXIF orientation is applied. What is returned states none of this any more: it is converted to itself.

    ``name`` is what messages call it. Raises :class:`~tide.errors.TideError` if the file behind ``image``, read only
    now, is damaged; and for modes I and F if values lie outside their range, or all in what may as well be meant as
    a smaller one (I up to 255, F up to 1).
    """
    try:
        return _shown(image, background, name)
    except TideError:
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise TideError(f"{name} is not a readable image ({one_line(error)}); give a whole one") from None


def _shown(image: Image.Image, background: Background, name: str) -> Image.Image:
    image = _with_sound_key(image)
    plain = in_srgb(_plain(image, name), image.info)
    if plain.mode in ("LA", "RGBA"):
        plain = _on(background, plain.convert("RGBA"))
    shown = upright(plain.convert("RGB"), image.info.get("exif"))
    shown.info = {}  # all of it is applied, and must not be applied again
    return shown


def _with_sound_key(image: Image.Image) -> Image.Image:
    """``image`` loaded, and the colour that a PNG calls transparent in the 8 bits of its pixels. A key of another kind
    than the pixels, left from a conversion, is dropped.

    The scaled key replaces the one in ``image.info``: once loaded, a picture tells no more how its file codes pixels,
    and a second conversion would take the key for one of 8 bits.
    """
    coded = image.tile[0].args if isinstance(image, ImageFile) and image.tile else None
    image.load()
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and isinstance(coded, str):
        image.info["transparency"] = key * _FACTORS.get(coded, 1)
    elif image.mode == "RGB" and isinstance(key, tuple) and (coded == "RGB;16B" or max(key) > 255):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if "transparency" in image.info and not isinstance(key, _KEYS.get(image.mode, int)):
        image = image.copy()
        del image.info["transparency"]
    return image


def _plain(image: Image.Image, name: str) -> Image.Image:
    """``image`` in mode L, LA, RGB, RGBA or CMYK."""
    if image.mode.startswith("I"):
        return _high_byte(image, name)
    if image.mode == "F":
        return _rounded(image, name)
    if image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # many writers leave the fourth byte 0
    opaque, transparent = _PLAIN.get(image.mode, ("RGB", "RGBA"))
    mode = transparent if image.has_transparency_data else opaque
    return image if image.mode == mode else image.convert(mode)


def _high_byte(image: Image.Image, name: str) -> Image.Image:
    """16-bit greys in mode L or LA; Pillow alone would clip them at 255."""
    values, key = np.asarray(image), image.info.get("transparency")
    if image.mode == "I":
        _check_range(values, 255, 65535, f"{name} is of mode I", "mode L for values up to 255 and to I;16 for 65535")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _rounded(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    _check_range(values, 1, 255, f"{name} is of mode F", "mode L, with 255 for white")
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _check_range(values: np.ndarray, unclear: int, most: int, what: str, remedy: str) -> None:
    low, high = values.min(initial=0), values.max(initial=0)
    if not 0 <= low <= high <= most:  # false for NaN, too
        raise TideError(f"{what} with values from {low:g} to {high:g}, not in 0 to {most}; convert it to {remedy}")
    if 0 < high <= unclear:
        raise TideError(
            f"{what} with values up to {high:g}, which may mean white or almost black; convert it to {remedy}"
        )


def _on(background: Background, image: Image.Image) -> Image.Image:
    under = Image.new("RGB", image.size, background)
    under.paste(image, mask=image)
    return under

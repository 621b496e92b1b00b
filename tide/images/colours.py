"""Colours of other spaces as sRGB, as viewers show them."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

#: Bytes of a colour profile at most; those of printers have up to 3 MB.
MAX_PROFILE = 2**22

#: sRGB's own curve, as PNG's gamma states it.
_SRGB_GAMMA = 1 / 2.2


def in_srgb(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """``image``, of mode L, LA, RGB, RGBA or CMYK, in sRGB; ``info`` says what its colours are.

    An embedded ICC profile is applied with the perceptual intent. One that is damaged, larger than
    :data:`MAX_PROFILE` or of another colour space than the pixels is ignored. Without a profile, a PNG's gamma ``g``
    says that values ``v`` in [0, 1] are light ``v ** (1 / g)``, unless it is within 5 % of 1 / 2.2, which is sRGB.
    Chromaticities (cHRM, cICP) are not applied.
    """
    profile = info.get("icc_profile")
    if isinstance(profile, bytes) and profile:
        return _transformed(image, profile)
    gamma = info.get("gamma")
    if isinstance(gamma, float) and "srgb" not in info and 0.1 <= gamma <= 10 and abs(gamma / _SRGB_GAMMA - 1) > 0.05:
        return _of_light(image, gamma)
    return image


def _transformed(image: Image.Image, profile: bytes) -> Image.Image:
    mode = {"LA": "L", "RGBA": "RGB"}.get(image.mode, image.mode)
    if (transform := _transform(profile, mode)) is None:
        return image
    shown = transform.apply(image if image.mode == mode else image.convert(mode))
    if image.mode != mode:
        shown.putalpha(image.getchannel("A"))
    return shown


@lru_cache(maxsize=8)  # the pictures of a folder often share one
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    if len(profile) > MAX_PROFILE:
        return None
    try:
        return ImageCms.buildTransform(BytesIO(profile), ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # damaged, or of another colour space
        return None


def _of_light(image: Image.Image, gamma: float) -> Image.Image:
    light = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    table = np.rint(255 * srgb).astype(int).tolist()
    return image.point([each for band in image.getbands() for each in (range(256) if band == "A" else table)])

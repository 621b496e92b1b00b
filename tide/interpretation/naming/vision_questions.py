"""What a vision-language model is asked for a latent's name, and how its answers are read."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tide.errors import TideError
from tide.interpretation.naming.vision_client import NoAnswerError
from tide.messages import one_line
from tide.pictures import heat_overlay
from tide.strips import shown

#: Pixels of the longer side of a picture that is sent, about, and the quality of its JPEG.
SIDE, QUALITY = 256, 90

_NAMING = (
    "One feature of an image model fires on some images and is silent on others. In the first pictures a line "
    "surrounds the places where it fires most, and colours fade to grey where it is silent. In the last pictures it "
    "is silent everywhere. What do the marked places have in common that the last pictures lack? It may be an object, "
    "a part, a texture, a colour, a place in the picture or a style. Name it in one to five words, as precisely as the "
    'pictures allow. Answer with JSON alone: {"name": "..."}'
)
_DETECTION = (
    "Which of these {n} pictures show the following? {name}\nSome do and some do not. "
    'Answer with JSON alone, the numbers of those that do: {{"fits": [...]}}'
)

#: Parts of a message as chat completions have them.
Parts = list[dict[str, Any]]


def naming_question(firing: Sequence[tuple[np.ndarray, np.ndarray]], silent: Sequence[np.ndarray]) -> Parts:
    """Asks for a name. ``firing``: images uint8 ``[H, W, 3]`` with the latent's map ``[h, w]``; ``silent`` images."""
    top = max(float(heat.max()) for _, heat in firing)
    parts = [_text(_NAMING)]
    for i, (image, heat) in enumerate(firing, 1):
        parts += [_text(f"It fires, {i}:"), _picture(heat_overlay(_sized(image), heat, top))]
    for i, image in enumerate(silent, 1):
        parts += [_text(f"It is silent, {i}:"), _picture(_sized(image))]
    return parts


def detection_question(name: str, images: Sequence[np.ndarray]) -> Parts:
    """Asks which of ``images``, numbered from 1, fit the name. Nothing is marked in them."""
    parts = [_text(_DETECTION.format(n=len(images), name=json.dumps(name, ensure_ascii=False)))]
    for i, image in enumerate(images, 1):
        parts += [_text(f"Picture {i}:"), _picture(_sized(image))]
    return parts


def read_name(answer: str) -> str:
    """The name in an answer, "" if it is empty. Raises :class:`NoAnswerError` for an answer without one."""
    name = _object(answer).get("name")
    if not isinstance(name, str):
        raise NoAnswerError(f"its answer holds no name ({one_line(answer, 80)})")
    return " ".join(name.split())


def read_fits(answer: str, n: int) -> list[bool]:
    """Which of ``n`` pictures fit, by an answer. Raises :class:`NoAnswerError` for numbers of no picture."""
    fits = _object(answer).get("fits")
    if not isinstance(fits, list) or not all(type(i) is int and 1 <= i <= n for i in fits):
        raise NoAnswerError(f"its answer holds no numbers of the {n} pictures ({one_line(answer, 80)})")
    return [i in fits for i in range(1, n + 1)]


def _object(answer: str) -> dict[str, Any]:
    """The first JSON object of an answer: models write words and fences around it."""
    try:
        found, _ = json.JSONDecoder().raw_decode(answer, max(0, answer.find("{")))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoAnswerError(f"its answer is not JSON ({one_line(answer, 80)})")
    return found


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _picture(image: np.ndarray) -> dict[str, Any]:
    buffer = BytesIO()
    # Colours at full resolution: otherwise a line of one pixel would lose its own.
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _sized(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise TideError(f"an image is {image.dtype} {list(image.shape)}; give uint8 [H, W, 3]")
    return np.array(shown(Image.fromarray(np.ascontiguousarray(image)), SIDE))

"""What the answers of the server are read with."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

import numpy as np
from PIL import Image

#: Seconds in which a drawing of the bundled pipeline says something, on any machine.
SOON = 20.0
OWN_HEADERS = {"content-security-policy", "x-content-type-options", "referrer-policy", "cross-origin-resource-policy"}
_KINDS = {"f32": "<f4", "i32": "<i4", "u8": "u1"}


def unpacked(data: bytes) -> dict[str, np.ndarray]:
    """What :func:`tide.browser.wire.packed` packed."""
    (length,) = struct.unpack("<I", data[:4])
    found = {}
    for each in json.loads(data[4 : 4 + length]):
        kind, start = np.dtype(_KINDS[each["kind"]]), 4 + length + each["start"]
        count = int(np.prod(each["shape"]))
        found[each["name"]] = np.frombuffer(data, kind, count, start).reshape(each["shape"])
    return found


def refused(answer: Any, *statuses: int) -> str:
    """The message of a refusal, in one line that a reader can do something with."""
    assert answer.status_code in (statuses or (400,)), (answer.status_code, answer.text[:300])
    said = answer.json()
    assert said.keys() == {"message"}, said
    message = said["message"]
    assert message.isprintable(), message
    assert 0 < len(message) <= 1000
    return message


def ended(job: Any) -> list[dict]:
    """The events of a job, all of them."""
    while not job.ended:
        assert job.wait(len(job.events), SOON)
    return job.events


def images(events: list[dict]) -> dict[tuple[str, int], Image.Image]:
    """The images of a drawing, by which they are and their numbers."""
    return {(each["which"], each.get("number", 0)): opened(each["png"]) for each in events if each["event"] == "image"}


def opened(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))

"""Odd pictures among a newcomer's own: read as they look, or named and skipped."""

from __future__ import annotations

import re
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.helpers.newcomer import Digit
from tests.helpers.newcomer_flow import tide
from tests.helpers.pictures import chunk, encoded, exif, with_chunk
from tide import open_source

SEVEN = Digit("seven", "blue", 0)


def hidden() -> bytes:
    """The digit on a transparent ground, under which there is red."""
    image = SEVEN.draw()
    ink = np.asarray(image.convert("L")) < 200
    pixels = np.where(ink[..., None], np.asarray(image), (255, 0, 0)).astype(np.uint8)
    return encoded(Image.fromarray(np.dstack([pixels, np.where(ink, 255, 0).astype(np.uint8)])))


def of_16_bits() -> bytes:
    return encoded(Image.fromarray(np.asarray(SEVEN.draw().convert("L")).astype(np.uint16) * 257))


#: Files that look like a seven on white.
SOUND = {
    "transparent.png": hidden(),
    "grey.png": of_16_bits(),
    "much-text.png": with_chunk(encoded(SEVEN.draw()), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 * 2**20)))),
    "palette.png": encoded(SEVEN.draw().quantize(16)),
    "inks.jpg": encoded(SEVEN.draw().convert("CMYK"), "JPEG", quality=95),
    "phone.jpg": encoded(SEVEN.draw().rotate(90), "JPEG", quality=95, exif=exif(6)),
    "alpha.webp": encoded(Image.open(BytesIO(hidden())), "WEBP", lossless=True, exact=True),
}


@pytest.mark.parametrize("name", SOUND)
def test_pictures_are_taken_as_they_look(tmp_path, adapter, name):
    (tmp_path / name).write_bytes(SOUND[name])
    ((images, _),) = open_source(tmp_path, adapter)
    expected = SEVEN.draw().convert("L" if name == "grey.png" else "RGB").convert("RGB")
    pixels = (images[0].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(pixels - np.asarray(expected, float)).mean() < 4


def test_damaged_pictures_are_named_and_skipped(tmp_path, pixart):
    for name, content in SOUND.items():
        (tmp_path / "some" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "some" / name).write_bytes(content)
    (tmp_path / "some" / "half.png").write_bytes(SOUND["palette.png"][:150])
    (tmp_path / "some" / "page.jpg").write_text("<html>not found</html>")
    options = ("--pipeline", pixart, "--data", tmp_path / "some", "--timesteps", 2)
    said = tide("collect", *options, "--out", tmp_path / "a")
    assert said.code == 2
    assert re.search(r"(half.png|page.jpg) is not a readable image", said.err)
    assert not (tmp_path / "a").exists()
    said = tide("collect", *options, "--skip-unreadable", "--out", tmp_path / "b", "--no-pairs")
    assert said.code == 0
    for name in ("half.png", "page.jpg"):
        assert f"{name} is not a readable image" in said.err
    assert "Traceback" not in said.err

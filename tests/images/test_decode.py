"""Pictures of others: only documented formats, bounded memory, one line for what cannot be read."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import chunk, encoded, exif
from tide.errors import TideError
from tide.images.decode import MAX_PIXELS, MAX_SIDE, open_picture, to_rgb


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of zeros that states any size; its pixels are few bytes, compressed."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    row = 1 + (width * bits * {0: 1, 6: 4}[colour] + 7) // 8
    pixels = zlib.compress(bytes(min(10**8, height * row)), 1)
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


SMALL = Image.new("RGB", (8, 6), (200, 100, 50))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_documented_formats_are_read(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(encoded(SMALL, kind))
    for source in (tmp_path / "x.png", encoded(SMALL, kind)):
        found = open_picture(source)
        assert (found.size, found.mode) == ((8, 6), "RGB")
        assert np.abs(np.asarray(found, int) - (200, 100, 50)).max() < 9  # JPEG and WebP lose some


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "TGA", "ICO", "JPEG2000", "EPS", "PDF", "DDS"])
def test_other_formats_are_not_whatever_they_are_called(tmp_path, kind):
    (tmp_path / "x.png").write_bytes(encoded(SMALL, kind))
    with pytest.raises(TideError, match=r"x\.png is not a readable image .*PNG, JPEG, WEBP, BMP"):
        open_picture(tmp_path / "x.png")


def test_no_program_is_started(tmp_path, monkeypatch):
    """EPS is drawn by Ghostscript, if there is one."""
    (tmp_path / "bin").mkdir()
    gs = tmp_path / "bin" / "gs"
    gs.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    gs.chmod(0o755)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # it may have been looked for in vain before
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "x.png").write_bytes(header)
    with pytest.raises(TideError, match="is not a readable image"):
        open_picture(tmp_path / "x.png")
    assert not (tmp_path / "started").exists()


GROWTH = textwrap.dedent("""
    import resource, sys, warnings
    from pathlib import Path
    from tide.images import open_picture

    warnings.simplefilter("error")
    open_picture(Path(sys.argv[1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        open_picture(Path(sys.argv[2]))
        said = "read"
    except ValueError as error:
        said = str(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, said)
""")


def memory_for(tmp_path: Path, content: bytes) -> tuple[int, str]:
    """The bytes by which the peak of a process grows when it opens the picture, and what is said of it."""
    (tmp_path / "small.png").write_bytes(encoded(SMALL))
    (tmp_path / "x.png").write_bytes(content)
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "small.png"), str(tmp_path / "x.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    grown, said = found.stdout.strip().split(maxsplit=1)
    assert "\n" not in said
    return int(grown) * 1024, said


@pytest.mark.parametrize(
    "size",
    [(1, 170_000_000), (MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (20_000, 8_001), (2**31 - 1, 2**31 - 1)],
    ids=["a column", "wide", "high", "too many pixels", "the largest that a header states"],
)
def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path, size):
    grown, said = memory_for(tmp_path, png(*size))
    assert grown < 32 * 2**20
    if size[0] < 2**31 - 1:  # the last one Pillow refuses itself
        assert f"x.png is {size[0]} x {size[1]} pixels and at most 65,536 a side and 160,000,000 in all" in said
    assert "make it smaller" in said or "is not a readable image" in said


@pytest.mark.parametrize(
    ("size", "kind"),
    [((10_000, 9_000), {"bits": 1}), ((4_000, 4_000), {"colour": 6}), ((4_000, 4_000), {"bits": 16})],
    ids=["of one bit, larger than what Pillow warns of", "transparent", "of 16 bits"],
)
def test_a_large_photo_is_read_within_the_stated_memory(tmp_path, size, kind):
    """4 bytes a pixel, four times at most."""
    n_pixels = size[0] * size[1]
    grown, said = memory_for(tmp_path, png(*size, **kind))
    assert said == "read"
    assert grown < 4 * 4 * n_pixels
    assert n_pixels < MAX_PIXELS


def test_pillows_warning_of_half_that_size_is_not_passed_on(tmp_path):
    rows = bytes(1252 * 9_000)  # one bit a pixel
    header = struct.pack("<IiiHHIIiiII", 40, 10_000, 9_000, 1, 1, 0, len(rows), 0, 0, 2, 0) + b"\0\0\0\0\xff\xff\xff\0"
    content = b"BM" + struct.pack("<IHHI", 62 + len(rows), 0, 0, 62) + header + rows
    assert memory_for(tmp_path, content)[1] == "read"


def exif_bomb(n: int = 20_000) -> bytes:
    """Entries that all point to the whole block."""
    size = 2 + 12 * n
    entries = b"".join(struct.pack(">HHII", 1000 + i, 7, size, 8) for i in range(n))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, n) + entries + bytes(4)


def jpeg_with(block: bytes) -> bytes:
    """The block in as many segments as it needs."""
    plain, parts = encoded(SMALL, "JPEG"), [block[6:][i : i + 65_000] for i in range(0, len(block) - 6, 65_000)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts]
    return plain[:2] + b"".join(segments) + plain[2:]


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with(exif_bomb()),
        png(8, 6, chunk(b"eXIf", exif_bomb()[6:])),
        encoded(SMALL, "WEBP", exif=exif_bomb()),
        png(8, 6, *[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 + 1), 9))] * 200),
        png(8, 6, *[chunk(b"zTXt", b"a%d\0\0" % i + zlib.compress(bytes(2**20), 9)) for i in range(200)]),
        png(8, 6, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**9), 9))),
    ],
    ids=["EXIF of a JPEG", "EXIF of a PNG", "EXIF of a WebP", "a long text", "many texts", "a colour profile"],
)
def test_what_comes_with_the_pixels_takes_no_memory_either(tmp_path, content):
    grown, said = memory_for(tmp_path, content)
    assert grown < 160 * 2**20
    assert said == "read"  # without a warning an entry, too


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "link", "zero"):
        with pytest.raises(TideError, match=f"{name}.png is not a regular file; give a picture"):
            open_picture(tmp_path / f"{name}.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    for name in ("dangling", "missing"):
        with pytest.raises(TideError, match=f"{name}.png does not exist; check the path"):
            open_picture(tmp_path / f"{name}.png")


def test_a_file_of_too_many_bytes_is_not_read(tmp_path):
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**40)  # takes no space
    with pytest.raises(TideError, match=r"x\.png has 1,099,511,627,776 bytes and at most"):
        open_picture(tmp_path / "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_a_truncated_file_is_said_to_be(kind):
    whole = encoded(Image.effect_noise((40, 40), 90).convert("RGB"), kind)
    for n_bytes in (0, 1, 10, 30, len(whole) // 2, len(whole) - 40):
        with pytest.raises(TideError, match=r"^the picture is not a readable image"):
            open_picture(whole[:n_bytes])


# -- what is shown --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind):
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(BytesIO(content)).n_frames == 2
    assert open_picture(content).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_upright(kind, orientation):
    from PIL import ImageOps

    corners = Image.fromarray(np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((16, 24), np.uint8)))
    content = encoded(corners.convert("RGB"), kind, exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    assert np.array_equal(open_picture(content), expected)
    assert np.array_equal(to_rgb(Image.open(BytesIO(content))), expected)


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0XX",
        exif(6)[:14],
        exif(6)[:20],
        exif(9),
        exif(0),
        exif(6).replace(b"\x01\x12", b"\0\0"),
    ],
    ids=["none", "empty", "of no byte order", "no entries", "cut", "9", "0", "another entry"],
)
def test_exif_that_states_no_orientation_turns_nothing(block):
    plain = png(8, 6)
    content = plain[:33] + chunk(b"eXIf", block.removeprefix(b"Exif\0\0")) + plain[33:]
    assert open_picture(content).size == (8, 6)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_a_string_or_a_path(tmp_path, kind):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "red.png")
    assert open_picture(kind(tmp_path / "red.png")).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(TideError, match=f"^{tmp_path}/none.png does not exist"):
        open_picture(kind(tmp_path / "none.png"))

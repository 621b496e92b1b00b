"""Every mode of Pillow, and every kind of pixel of the formats, comes out as a browser shows it on white.

The values of files were compared with Chromium's (drawn on a white canvas, read back): they agree within 1.
"""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.helpers.pictures import (
    bmp_of,
    chunk,
    encoded,
    exif,
    grey_profile,
    mended,
    mutated,
    png_of,
    swapped_profile,
    with_chunk,
)
from tide.errors import TideError
from tide.images import open_picture, to_rgb

#: White, and a grey.
W, G = [255] * 3, [50] * 3
RED, GREEN, BLUE = [255, 0, 0], [0, 255, 0], [0, 0, 255]


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def key(*values: int) -> bytes:
    return chunk(b"tRNS", words(*values))


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


PALETTE = chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE, *G]))
COLOURS = Image.fromarray(np.array([[RED, GREEN, [10, 128, 200], W]], np.uint8))
BLOCKS = COLOURS.resize((64, 16), Image.Resampling.NEAREST)
ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

#: Files of one row, and what they show.
FILES: dict[str, tuple[bytes, list[list[int]]]] = {
    "1 bit": (png_of(b"\x60", bits=1), [[0] * 3, W, W, *[[0] * 3] * 5]),
    "1 bit, white is transparent": (png_of(b"\x60", key(1), bits=1), [[0] * 3, W, W, *[[0] * 3] * 5]),
    "1 bit, black is transparent": (png_of(b"\x60", key(0), bits=1), [W] * 8),
    "2 bits": (png_of(b"\x1b", bits=2), [[v] * 3 for v in (0, 85, 170, 255)]),
    "2 bits with a key": (png_of(b"\x1b", key(2), bits=2), [[v] * 3 for v in (0, 85, 255, 255)]),
    "4 bits": (png_of(b"\x05\xaf", bits=4), [[v] * 3 for v in (0, 85, 170, 255)]),
    "4 bits with a key": (png_of(b"\x05\xaf", key(5), bits=4), [[v] * 3 for v in (0, 255, 170, 255)]),
    "8 bits with a key": (png_of(b"\0\x32\xc8", key(200)), [[0] * 3, G, W]),
    "16-bit grey": (png_of(words(0, 0x1234, 0x80FF, 0xFFFF), bits=16), [[v] * 3 for v in (0, 0x12, 0x80, 255)]),
    "16-bit grey with a key": (png_of(words(0x1234, 0x1235), key(0x1234), bits=16), [W, [0x12] * 3]),
    "16-bit grey with alpha": (
        png_of(words(0x1234, 0xFFFF, 0x8000, 0x8000, 0x4000, 0), bits=16, colour=4),
        [[0x12] * 3, [191] * 3, W],
    ),
    "16-bit RGB": (png_of(words(0, 0x1234, 0xFFFF), bits=16, colour=2), [[0, 0x12, 255]]),
    "16-bit RGB with a key": (
        png_of(words(0, 0x1234, 0xFFFF, 0x80FF, 0, 0x4000), key(0x80FF, 0, 0x4000), bits=16, colour=2),
        [[0, 0x12, 255], W],
    ),
    "16-bit RGB with a dark key": (
        png_of(words(0, 0, 9, 0xFFFF, 0, 0), key(0, 0, 9), bits=16, colour=2),
        [W, RED],
    ),
    "16-bit RGBA": (
        png_of(words(0x1234, 0, 0xFFFF, 0xFFFF, 0xFF00, 0, 0, 0x8000, 9, 9, 9, 0), bits=16, colour=6),
        [[0x12, 0, 255], [255, 127, 127], W],
    ),
    "RGB with a key": (png_of(bytes([*RED, *GREEN, *BLUE]), key(0, 255, 0), colour=2), [RED, W, BLUE]),
    "RGBA": (png_of(bytes([*RED, 255, *GREEN, 0, 100, 0, 0, 128]), colour=6), [RED, W, [177, 127, 127]]),
    "grey with alpha": (png_of(bytes([50, 255, 200, 0]), colour=4), [G, W]),
    "a palette": (png_of(b"\0\1\2\3", PALETTE, colour=3), [RED, GREEN, BLUE, G]),
    "a palette, many alphas": (
        png_of(b"\0\1\2\3", PALETTE, chunk(b"tRNS", b"\0\x80\xff"), colour=3),
        [W, [127, 255, 127], BLUE, G],
    ),
    "a palette, one transparent": (
        png_of(b"\0\1\2\3", PALETTE, chunk(b"tRNS", b"\xff\0"), colour=3),
        [RED, W, BLUE, G],
    ),
    "a palette of 2 bits": (png_of(b"\x1b", PALETTE, chunk(b"tRNS", b"\0"), bits=2, colour=3), [W, GREEN, BLUE, G]),
    "light": (png_of(bytes([0, 16, 64, 128, 255]), gamma(1)), [[v] * 3 for v in (0, 71, 137, 188, 255)]),
    "of half the gamma": (png_of(bytes([10, 128, 200, 128]), gamma(1), colour=6), [[155, 221, 242]]),
    "sRGB's gamma": (png_of(bytes([16, 64, 128]), gamma(0.45455)), [[16] * 3, [64] * 3, [128] * 3]),
    "sRGB, which counts more": (png_of(bytes([16, 64]), chunk(b"sRGB", b"\0"), gamma(1)), [[16] * 3, [64] * 3]),
    "a profile": (encoded(COLOURS, icc_profile=swapped_profile()), [GREEN, BLUE, [201, 3, 129], W]),
    "a profile and alpha": (
        encoded(Image.new("RGBA", (1, 1), (*RED, 128)), icc_profile=swapped_profile()),
        [[127, 255, 127]],
    ),
    "a palette and a profile": (
        encoded(COLOURS.quantize(4), icc_profile=swapped_profile()),
        [GREEN, BLUE, [201, 3, 129], W],
    ),
    "a grey profile": (encoded(Image.frombytes("L", (2, 1), b"\x40\xff"), icc_profile=grey_profile(1)), [[137] * 3, W]),
    "a grey profile and alpha": (
        encoded(Image.frombytes("LA", (2, 1), b"\x40\xff\0\0"), icc_profile=grey_profile(1)),
        [[137] * 3, W],
    ),
    "a damaged profile": (encoded(COLOURS, icc_profile=swapped_profile()[:200]), [RED, GREEN, [10, 128, 200], W]),
    "a grey profile of colours": (encoded(COLOURS, icc_profile=grey_profile(1)), [RED, GREEN, [10, 128, 200], W]),
    "WebP with alpha": (
        encoded(Image.frombytes("RGBA", (2, 1), bytes([*RED, 255, *GREEN, 0])), "WEBP", lossless=True, exact=True),
        [RED, W],
    ),
    "WebP with a profile": (
        encoded(COLOURS, "WEBP", lossless=True, icc_profile=swapped_profile()),
        [GREEN, BLUE, [201, 3, 129], W],
    ),
    "BMP, a fourth byte": (bmp_of(bytes([*BLUE, 0, *BLUE, 128]), 32), [RED, RED]),
    "BMP with alpha": (bmp_of(bytes([*BLUE, 255, *BLUE, 0]), 32, ARGB, header=124), [RED, W]),
    "BMP whose alpha nobody wrote": (bmp_of(bytes([*BLUE, 0, *RED, 0]), 32, ARGB, header=124), [RED, BLUE]),
    "BMP of 5, 6 and 5 bits": (bmp_of(struct.pack("<2H", 0xF800, 0x07E0), 16, (0xF800, 0x7E0, 0x1F)), [RED, GREEN]),
    "BMP of 5 bits": (bmp_of(struct.pack("<2H", 0x7C00, 0x1F), 16), [RED, BLUE]),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_show_what_browsers_show(kind):
    content, expected = FILES[kind]
    found = np.asarray(open_picture(content), int)[0]
    assert np.abs(found - expected).max() <= 1, found.tolist()
    lazily = np.asarray(to_rgb(Image.open(BytesIO(content))), int)[0]  # as rows of a data set give them
    assert np.abs(lazily - expected).max() <= 1, lazily.tolist()


TURNED = {f"EXIF {kind}": encoded(BLOCKS, kind, exif=exif(6)) for kind in ("PNG", "JPEG", "WEBP")}


@pytest.mark.parametrize("kind", [*FILES, *TURNED])
def test_a_converted_picture_is_converted_to_itself(kind):
    """Pictures are converted when they are opened, and where they become tensors."""
    content = TURNED[kind] if kind in TURNED else FILES[kind][0]
    once = open_picture(content)
    twice = to_rgb(once)
    assert once.size == twice.size
    assert once.tobytes() == twice.tobytes()


@pytest.mark.parametrize("kind", [*FILES, *TURNED])
def test_a_picture_of_the_caller_shows_the_same_whenever_it_is_converted(kind):
    """Pillow forgets on loading how the file codes its pixels."""
    image = Image.open(BytesIO(TURNED[kind] if kind in TURNED else FILES[kind][0]))
    assert to_rgb(image).tobytes() == to_rgb(image).tobytes()


@pytest.mark.parametrize("kind", [kind for kind in FILES if "key" in kind or "alpha" in kind or "transparent" in kind])
def test_another_background_shows_where_white_does(kind):
    """As masks are read: what is transparent is black. What was not mixed with the background stays."""
    content = FILES[kind][0]
    white, black = (np.asarray(open_picture(content, background=each), int) for each in ("white", "black"))
    assert (white >= black).all()
    alpha = np.asarray(Image.open(BytesIO(content)).convert("RGBA"))[..., 3]
    if "bit" not in kind and kind != "BMP whose alpha nobody wrote":  # where Pillow's transparency is right
        assert np.abs((white - black)[..., 0] - (255 - alpha)).max() <= 1


@pytest.mark.parametrize(("mode", "key"), [("RGB", 0), ("L", (0, 0, 0)), ("P", None), ("L", None), ("YCbCr", "x")])
def test_a_key_of_another_kind_than_the_pixels_is_none(mode, key):
    image = Image.new(mode, (1, 1))
    expected = to_rgb(image).getpixel((0, 0))
    image.info["transparency"] = key
    assert to_rgb(image).getpixel((0, 0)) == expected


def test_black_shows_where_a_16_bit_grey_is_transparent():
    assert np.asarray(open_picture(png_of(words(9 << 8, 9), key(9 << 8), bits=16), background="black"))[0, 0, 0] == 0


def cmyk(content: bytes) -> bytes:
    """Without the marker of Adobe, whose values are inverted; viewers take all as such."""
    at = content.index(b"\xff\xee")
    return content[:at] + content[at + 2 + struct.unpack_from(">H", content, at + 2)[0] :]


INKS = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
JPEGS = {
    "grey": (encoded(Image.new("L", (16, 16), 50), "JPEG"), G),
    "YCbCr": (encoded(Image.new("RGB", (16, 16), (200, 100, 50)), "JPEG"), [200, 100, 50]),
    "CMYK": (encoded(INKS, "JPEG"), RED),
    "CMYK without Adobe's mark": (cmyk(encoded(INKS, "JPEG")), RED),
    "a profile": (encoded(Image.new("RGB", (16, 16), "red"), "JPEG", icc_profile=swapped_profile()), GREEN),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpegs_show_what_browsers_show(kind):
    content, expected = JPEGS[kind]
    assert np.abs(np.subtract(open_picture(content).getpixel((8, 8)), expected)).max() <= 4


#: Pictures in memory: one pixel, and what it shows.
IN_MEMORY = {
    "1": (Image.new("1", (1, 1), 1), W),
    "L": (Image.new("L", (1, 1), 50), G),
    "LA": (Image.new("LA", (1, 1), (50, 0)), W),
    "La": (Image.new("LA", (1, 1), (0, 128)).convert("La"), [127] * 3),
    "P": (COLOURS.quantize(4).crop((1, 0, 2, 1)), GREEN),
    "PA": (Image.new("RGBA", (1, 1), (*RED, 0)).convert("PA"), W),
    "RGB": (Image.new("RGB", (1, 1), "red"), RED),
    "RGBX": (Image.new("RGBX", (1, 1), (255, 0, 0, 7)), RED),
    "RGBA": (Image.new("RGBA", (1, 1), (*RED, 0)), W),
    "RGBa": (Image.new("RGBA", (1, 1), (100, 0, 0, 128)).convert("RGBa"), [177, 127, 127]),
    "CMYK": (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), RED),
    "YCbCr": (Image.new("RGB", (1, 1), (200, 100, 50)).convert("YCbCr"), [200, 100, 50]),
    "HSV": (Image.new("RGB", (1, 1), "red").convert("HSV"), RED),
    "LAB": (Image.new("RGB", (1, 1), (200, 100, 50)).convert("LAB"), [200, 100, 50]),
    "I": (Image.fromarray(np.array([[0x8034]], np.int32)), [0x80] * 3),
    "I;16": (Image.frombytes("I;16", (1, 1), b"\x34\x80"), [0x80] * 3),
    "I;16L": (Image.frombytes("I;16L", (1, 1), b"\x34\x80"), [0x80] * 3),
    "I;16B": (Image.frombytes("I;16B", (1, 1), b"\x80\x34"), [0x80] * 3),
    "I;16N": (Image.frombytes("I;16N", (1, 1), struct.pack("=H", 0x8034)), [0x80] * 3),
    "F": (Image.fromarray(np.array([[99.6]], np.float32)), [100] * 3),
}


def test_the_table_has_every_mode():
    assert set(IN_MEMORY) >= set(Image.MODES)


@pytest.mark.parametrize("mode", IN_MEMORY)
def test_modes_in_memory(mode):
    image, expected = IN_MEMORY[mode]
    assert image.mode == mode
    before = image.tobytes(), dict(image.info)
    found = to_rgb(image)
    assert found.mode == "RGB"
    assert np.abs(np.subtract(found.getpixel((0, 0)), expected)).max() <= 2  # LAB is coarse
    assert (image.tobytes(), dict(image.info)) == before


@pytest.mark.parametrize("mode", ["a file", "I", "I;16", "I;16B"])
def test_a_16_bit_ramp_stays_a_ramp(mode):
    """Pillow's own conversion clips at 255, which makes nearly all of it white."""
    values = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    ramp = {
        "I": lambda: Image.fromarray(values.astype(np.int32)),
        "I;16": lambda: Image.fromarray(values),
        "I;16B": lambda: Image.frombytes("I;16B", (32, 32), values.astype(">u2").tobytes()),
        "a file": lambda: Image.open(BytesIO(encoded(Image.fromarray(values)))),
    }[mode]()
    assert np.array_equal(np.asarray(to_rgb(ramp))[5, :, 1], values[0] >> 8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            np.int32([0, 255]),
            r"^row 7 is of mode I with values up to 255, .* convert it to mode L for values up to 255",
        ),
        (np.int32([-1, 300]), r"values from -1 to 300, not in 0 to 65535"),
        (np.int32([0, 65536]), r"values from 0 to 65536, not in 0 to 65535"),
        (np.float32([0, 1]), r"^row 7 is of mode F with values up to 1, .* convert it to mode L, with 255 for white"),
        (np.float32([-1, 100]), r"values from -1 to 100, not in 0 to 255"),
        (np.float32([0, 65535]), r"values from 0 to 65535, not in 0 to 255"),
        (np.float32([0, np.nan]), r"values from nan to nan"),
    ],
)
def test_what_may_mean_several_things_is_refused(values, said):
    with pytest.raises(TideError, match=said):
        to_rgb(Image.fromarray(values[None]), name="row 7")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_black_means_one_thing(dtype):
    assert to_rgb(Image.fromarray(np.zeros((1, 1), dtype))).getpixel((0, 0)) == (0, 0, 0)


def test_srgb_keeps_its_pixels():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(open_picture(encoded(Image.fromarray(pixels), icc_profile=profile)), pixels)


# -- what stands beside the pixels ------------------------------------------------------------------------

PLAIN = encoded(COLOURS)
LONG = zlib.compress(bytes(3 * 2**20), 9)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"a\0\0" + LONG),
        chunk(b"tEXt", b"a\0" + b"x" * (3 * 2**20)),
        chunk(b"iTXt", b"a\0\1\0\0\0" + LONG),
        b"".join(chunk(b"tEXt", b"a\0" + b"x" * 2**20) for _ in range(70)),
        chunk(b"zTXt", b"a\0\7"),
        chunk(b"tEXt", b"a\0b")[:-1] + b"x",
        chunk(b"iCCP", b"a\0\0" + LONG),
        chunk(b"iCCP", b"a\0\7x"),
        chunk(b"iCCP", b"a"),
        chunk(b"gAMA", b"\0"),
        chunk(b"gAMA", bytes(4)),
        chunk(b"sRGB", b""),
        chunk(b"cHRM", b"\0"),
        chunk(b"pHYs", b"\0"),
        chunk(b"tRNS", b"\0"),
        chunk(b"acTL", b"\0"),
        chunk(b"acTL", bytes(8)),
        chunk(b"fcTL", b"\xff" * 26),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05\0\0\0\x01\0\0\0\x1a" + bytes(8)),
    ],
    ids=[
        *("a compressed text of 3 MB", "a text of 3 MB", "an international text of 3 MB", "70 MB of texts"),
        *("a text of an unknown method", "a text of a wrong checksum"),
        *("a profile of 3 MB", "a profile of an unknown method", "a cut profile"),
        *("a cut gamma", "a gamma of 0", "a cut sRGB", "cut chromaticities", "a cut resolution", "a cut key"),
        *("a cut animation", "an animation of no frames", "a frame of no place", "an EXIF resolution of 0 / 0"),
    ],
)
def test_a_png_is_read_whatever_stands_beside_its_pixels(extra):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for content in (with_chunk(PLAIN, extra), PLAIN[:-12] + extra + PLAIN[-12:]):
            assert np.array_equal(open_picture(content), COLOURS)


def test_the_pixels_checksum_still_counts():
    with pytest.raises(TideError, match="x is not a readable image"):
        open_picture(PLAIN[:29] + b"\0\0\0\0" + PLAIN[33:], "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_rational_of_zero_in_exif_harms_nobody(kind):
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05\0\0\0\x01\0\0\0\x1a" + bytes(12)
    content = encoded(BLOCKS, kind, exif=block)
    assert open_picture(content).size == (64, 16)
    assert to_rgb(Image.open(BytesIO(content))).size == (64, 16)


def test_a_picture_opened_but_not_read_is_refused_in_a_line():
    content = encoded(Image.effect_noise((64, 64), 90).convert("RGB"))
    with pytest.raises(TideError, match=r"^row 3 is not a readable image \(.+\); give a whole one$"):
        to_rgb(Image.open(BytesIO(content[: len(content) // 2])), name="row 3")


# -- at random --------------------------------------------------------------------------------------------

SEEDS = {
    "PNG": with_chunk(PLAIN, gamma(1), chunk(b"tEXt", b"a\0b"), chunk(b"eXIf", exif(6)[6:])),
    "PNG with a palette": FILES["a palette, many alphas"][0],
    "PNG of 16 bits": FILES["16-bit RGB with a key"][0],
    "PNG with a profile": FILES["a profile and alpha"][0],
    "APNG": encoded(COLOURS, save_all=True, append_images=[COLOURS.rotate(180)], duration=9),
    "JPEG": encoded(BLOCKS, "JPEG", exif=exif(6), icc_profile=swapped_profile(), comment=b"x"),
    "JPEG in steps": encoded(BLOCKS, "JPEG", progressive=True),
    "JPEG of inks": JPEGS["CMYK"][0],
    "WebP": encoded(BLOCKS, "WEBP", exif=exif(3), icc_profile=swapped_profile()),
    "WebP, lossless": FILES["WebP with alpha"][0],
    "animated WebP": encoded(COLOURS, "WEBP", save_all=True, append_images=[COLOURS.rotate(180)]),
    "BMP": encoded(COLOURS, "BMP"),
    "BMP with a palette": encoded(COLOURS.quantize(4), "BMP"),
    "BMP with alpha": FILES["BMP with alpha"][0],
}


@pytest.mark.parametrize("kind", SEEDS)
def test_nothing_but_a_line_comes_of_random_damage(kind):
    """Also with warnings as errors, and for what was opened by others."""
    rng, n_read, said = random.Random(0), 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(60):
            content = mutated(SEEDS[kind], rng)
            content = mended(content) if "PNG" in kind and rng.random() < 0.8 else content
            try:
                n_read += open_picture(content, "x.png").mode == "RGB"
            except TideError as error:
                said.append(str(error))
    assert [each for each in said if not each.startswith("x.png ") or len(each.splitlines()) != 1] == []
    assert said
    assert n_read + len(said) == 60

"""Picture files made by hand, of kinds that no library writes, and damaged copies of sound ones."""

from __future__ import annotations

import random
import struct
import zlib
from io import BytesIO

from PIL import Image

#: Bands of a pixel, by the colour type of a PNG.
_BANDS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def with_chunk(content: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks after its header."""
    return content[:33] + b"".join(chunks) + content[33:]


def png_of(row: bytes, *chunks: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of one row of packed pixels."""
    width = len(row) * 8 // (bits * _BANDS[colour])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def bmp_of(row: bytes, bits: int, masks: tuple[int, ...] = (), header: int = 40) -> bytes:
    """A BMP of one row of packed pixels; with ``masks``, those of its colours."""
    width = len(row) * 8 // bits
    info = struct.pack("<IiiHHIIiiII", header, width, 1, 1, bits, 3 if masks else 0, len(row), 0, 0, 0, 0)
    info += struct.pack(f"<{len(masks)}I", *masks)
    info += bytes(max(0, header - len(info)))
    start = 14 + len(info)
    return b"BM" + struct.pack("<IHHI", start + len(row), 0, 0, start) + info + row


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def icc_profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A profile of version 2 for a display."""
    directory = data = b""
    for name, tag in tags.items():
        tag += bytes(-len(tag) % 4)
        directory += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(tag))
        data += tag
    length = 132 + len(directory) + len(data)
    white = struct.pack(">3i", 63190, 65536, 54061)
    head = struct.pack(
        ">I4s4B4s4s4s6H4s", length, b"lcms", 2, 16, 0, 0, b"mntr", space, b"XYZ ", 2020, 1, 1, 0, 0, 0, b"acsp"
    )
    return head.ljust(68, b"\0") + white.ljust(60, b"\0") + struct.pack(">I", len(tags)) + directory + data


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def grey_profile(gamma: float) -> bytes:
    return icc_profile(
        b"GRAY", {b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061), b"kTRC": _curve(gamma)}
    )


def swapped_profile() -> bytes:
    """sRGB's primaries in another order: what is stored as red is green."""
    red, green, blue = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
    tags = {b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)}
    for name, xyz in ((b"r", green), (b"g", blue), (b"b", red)):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * v) for v in xyz))
        tags[name + b"TRC"] = _curve(2.2)
    return icc_profile(b"RGB ", tags)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A copy with one to eight changes: bits flipped, bytes replaced, removed, repeated, or fields made extreme."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data)) if len(data) > 1 else 0
        n = rng.choice((1, 2, 4, 4, 30))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + n] = rng.randbytes(n)
        elif kind == 2 and len(data) > 60:
            del data[at : at + n]
        elif kind == 3:
            data[at:at] = data[at : at + n]
        else:
            data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
    return bytes(data)


def mended(content: bytes) -> bytes:
    """A damaged PNG whose chunks have the checksums of what they hold, so that a decoder goes on to read them."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 8 + struct.unpack_from(">I", data, at)[0]
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)

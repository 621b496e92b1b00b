"""PNG files without what says nothing about their pixels."""

from __future__ import annotations

import struct
from typing import Any

from PIL import ImageFile
from PIL.PngImagePlugin import PngImageFile, PngStream

_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
#: What else changes the pixels that a viewer shows.
_USED = {b"tRNS", b"gAMA", b"sRGB", b"iCCP", b"eXIf"}


class _Chunks(PngStream):
    """The chunks of a file. Other chunks than :data:`_CRITICAL` and :data:`_USED` are passed over, and damaged ones of
    :data:`_USED` as well, as browsers do; Pillow refuses the whole picture, also for a megabyte of text."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        assert self.fp is not None
        if cid in _CRITICAL:
            return super().call(cid, pos, length)
        if cid in _USED:
            kept = dict(self.im_info)
            try:
                return super().call(cid, pos, length)
            except (ValueError, SyntaxError, LookupError, struct.error):
                self.im_info = kept
                self.fp.seek(pos)
        return ImageFile._safe_read(self.fp, length)

    def crc(self, cid: bytes, data: bytes) -> None:
        if cid in _CRITICAL:
            super().crc(cid, data)
        else:
            self.crc_skip(cid, data)


class Png(PngImageFile):
    """A PNG as a picture that stands still: of an animation, the image for viewers that know none."""

    _chunks: _Chunks | None = None

    @property
    def png(self) -> Any:
        """The stream that Pillow reads its chunks from."""
        return self._chunks

    @png.setter
    def png(self, stream: PngStream | None) -> None:
        self._chunks = None if stream is None or stream.fp is None else _Chunks(stream.fp)

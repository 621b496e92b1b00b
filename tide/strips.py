"""Pictures in labelled rows: strips of edits, concepts, trajectories."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tide.messages import one_line

#: Pixels of the longer side of a picture in a strip: smaller ones are enlarged up to it, larger ones shrunk to no less.
SIDE = 256
#: Pixels of the width of a strip, as long as two pictures fit.
WIDTH = 2400
GAP = 6
#: Letters of a label, and of a title.
LONGEST, LONGEST_TITLE = 160, 600


@dataclass(frozen=True)
class Row:
    """Pictures of one size side by side: ``labels``, one above each, and ``caption`` above them all."""

    pictures: Sequence[Image.Image]
    labels: Sequence[str] = ()
    caption: str = ""


def labelled(rows: Sequence[Row], title: str = "", *, side: int = SIDE) -> Image.Image:
    """Rows of pictures on white under a ``title``. Pictures are shown by :func:`shown`; a row that would be wider than
    :data:`WIDTH` is broken, and text is wrapped."""
    lines = [line for row in rows for line in _broken(row, side)]
    text = _Text(max(15, max(line.pictures[0].height for line in lines) // 16))
    width = max(_width(line.pictures) for line in lines)
    heading = text.wrapped(title, width, LONGEST_TITLE)
    blocks = [_drawn(line, text, width) for line in lines]
    gap = 2 * GAP
    height = text.height(heading) + sum(block.height + gap for block in blocks)
    sheet = Image.new("RGB", (width + 2 * gap, height + gap), "white")
    y = text.draw(sheet, (gap, GAP), heading) + GAP
    for block in blocks:
        sheet.paste(block, (gap, y))
        y += block.height + gap
    return sheet


def tiled(
    header: Sequence[str], rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] = (), title: str = ""
) -> Image.Image:
    """``rows`` of images, uint8 ``[H, W, 3]``, as :func:`labelled`: ``header`` names the columns, above the first row,
    and each row has its caption, if there are ``captions``."""
    lines = []
    for i, images in enumerate(rows):
        pictures = [Image.fromarray(np.ascontiguousarray(image)) for image in images]
        lines.append(Row(pictures, () if i else header, captions[i] if captions else ""))
    return labelled(lines, title)


def shown(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """A picture with a longer side of about ``side`` pixels, by whole factors, so that pixels stay square and sharp:
    repeated if it is smaller, averaged in squares if it is more than twice as large."""
    longer = max(picture.size)
    if longer > 2 * side:
        return picture.convert("RGB").reduce(-(-longer // (2 * side)))
    factor = max(1, side // longer)
    size = (picture.width * factor, picture.height * factor)
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)


def _broken(row: Row, side: int) -> Iterator[Row]:
    """The row in as many lines as it takes, its pictures as they are shown."""
    pictures = [shown(each, side) for each in row.pictures]
    n = max(2, (WIDTH + GAP) // (max(each.width for each in pictures) + GAP))
    n = math.ceil(len(pictures) / math.ceil(len(pictures) / n))  # lines of nearly equal length
    for start in range(0, len(pictures), n):
        yield Row(pictures[start : start + n], row.labels[start : start + n], "" if start else row.caption)


def _width(pictures: Sequence[Image.Image]) -> int:
    return sum(each.width for each in pictures) + GAP * (len(pictures) - 1)


def _drawn(row: Row, text: _Text, width: int) -> Image.Image:
    """One line of a strip: its caption, its labels right above their pictures, and the pictures."""
    caption = text.wrapped(row.caption, width, LONGEST_TITLE)
    labels = [
        text.wrapped(label, picture.width - GAP, LONGEST)
        for label, picture in (zip(row.labels, row.pictures, strict=True) if row.labels else ())
    ]
    top = text.height(caption) + max(map(text.height, labels), default=0)
    line = Image.new("RGB", (width, top + max(each.height for each in row.pictures)), "white")
    text.draw(line, (0, 0), caption)
    x = 0
    for i, picture in enumerate(row.pictures):
        label = labels[i] if labels else []
        text.draw(line, (x, top - text.height(label)), label)
        line.paste(picture, (x, top))
        x += picture.width + GAP
    return line


class _Text:
    """Text of a size in pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.line = round(1.35 * size)

    def height(self, lines: Sequence[str]) -> int:
        return self.line * len(lines)

    def draw(self, on: Image.Image, at: tuple[int, int], lines: Sequence[str]) -> int:
        """Draws ``lines`` from ``at`` downwards; returns where they end."""
        x, y = at
        for line in lines:
            ImageDraw.Draw(on).text((x, y), line, fill="black", font=_font(line, self.size))
            y += self.line
        return y

    def wrapped(self, text: str, width: int, most: int) -> list[str]:
        """The first ``most`` letters of ``text`` in lines of at most ``width`` pixels, broken at blanks, and within
        words that are longer than a line."""
        if not text.split():
            return []
        text = one_line(text, most)
        font, lines = _font(text, self.size), [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
                continue
            pieces = list(_pieces(word, font, width))
            lines = [*lines, *pieces] if lines[-1] else pieces
        return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    start = 0
    for end in range(1, len(word) + 1):
        if end - start > 1 and font.getlength(word[start:end]) > width:
            yield word[start : end - 1]
            start = end - 1
    yield word[start:]


# -- fonts --------------------------------------------------------------------------------------------------


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's DejaVu Sans (Latin, Cyrillic, Greek and more), or the system's font that has most of ``text``'s
    letters, where DejaVu lacks some."""
    needed = frozenset(map(ord, text)) - {32}
    return ImageFont.truetype(_path_for(needed), size)


@lru_cache(maxsize=256)
def _path_for(letters: frozenset[int]) -> str:
    import matplotlib

    best = str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    least = len(letters - _letters_of(best))
    for path in _system_fonts() if least else ():
        if (missing := len(letters - _letters_of(path))) < least:
            best, least = path, missing
        if not least:
            break
    return best


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(findSystemFonts()))


@lru_cache(maxsize=4096)
def _letters_of(path: str) -> frozenset[int]:
    """The characters that a font can draw, in the size of a label; none for a font that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 16)  # a font of bitmaps has sizes of its own alone
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()

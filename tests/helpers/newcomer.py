"""Pictures of a newcomer: drawn digits in colours, in class folders, with captions in every form that is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 150, 60),
    "blue": (40, 70, 210),
    "yellow": (225, 190, 30),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
}
#: Height and width in pixels: what the bundled VAE is made for.
SIDE = 64


@dataclass(frozen=True)
class Digit:
    digit: str
    colour: str
    number: int

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.digit}"

    @property
    def name(self) -> str:
        """Where it lies in its folder."""
        return f"{self.digit}/{self.digit}-{self.colour}-{self.number:03d}.png"

    def draw(self) -> Image.Image:
        """In its colour on white, about the centre."""
        place = np.random.default_rng([DIGITS.index(self.digit), list(COLOURS).index(self.colour), self.number])
        image = Image.new("RGB", (SIDE, SIDE), "white")
        x, y = (SIDE // 2 + int(each) for each in place.integers(-4, 5, 2))
        text = str(DIGITS.index(self.digit))
        ImageDraw.Draw(image).text(
            (x, y), text, COLOURS[self.colour], ImageFont.load_default(64), anchor="mm", stroke_width=3
        )
        return image


def digits(n_each: int = 4) -> list[Digit]:
    """``n_each`` of every digit in every colour, sorted by name."""
    every = [Digit(digit, colour, i) for digit in DIGITS for colour in COLOURS for i in range(n_each)]
    return sorted(every, key=lambda each: each.name)


def save_digits(folder: Path, drawn: Sequence[Digit]) -> None:
    for each in drawn:
        path = folder / each.name
        path.parent.mkdir(parents=True, exist_ok=True)
        each.draw().save(path)


def _text_beside(folder: Path, drawn: Sequence[Digit]) -> None:
    for each in drawn:
        (folder / each.name).with_suffix(".txt").write_text(each.caption + "\n")


def _lines(folder: Path, drawn: Sequence[Digit]) -> None:
    lines = [json.dumps({"file_name": each.name, "text": each.caption}) for each in drawn]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _lines_in_subfolders(folder: Path, drawn: Sequence[Digit]) -> None:
    for digit in DIGITS:
        own = [each for each in drawn if each.digit == digit]
        if own:
            lines = [json.dumps({"file_name": f"./{Path(each.name).name}", "text": each.caption}) for each in own]
            (folder / digit / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def _table(folder: Path, drawn: Sequence[Digit]) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((each.name, each.caption) for each in drawn)])


def _parquet(folder: Path, drawn: Sequence[Digit]) -> None:
    import pyarrow.parquet

    columns = {"file_name": [each.name for each in drawn], "text": [each.caption for each in drawn]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "metadata.parquet")


def _nothing(folder: Path, drawn: Sequence[Digit]) -> None:
    """The class folders say the digit."""


#: What writes the captions of a folder's pictures, by their form.
CAPTIONS: dict[str, Callable[[Path, Sequence[Digit]], None]] = {
    "text files": _text_beside,
    "metadata.jsonl": _lines,
    "metadata.jsonl in subfolders": _lines_in_subfolders,
    "metadata.csv": _table,
    "metadata.parquet": _parquet,
    "class folders": _nothing,
}


def save_bare(folder: Path, drawn: Sequence[Digit]) -> None:
    """All pictures in one folder, without a caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in drawn:
        each.draw().save(folder / Path(each.name).name)


def colour_of(image: Image.Image) -> str:
    """The colour that a picture's digit has: the nearest to the mean of its darker or more colourful pixels."""
    pixels = np.asarray(image.convert("RGB"), float).reshape(-1, 3)
    distance = np.linalg.norm(pixels - 255, axis=1)
    ink = pixels[distance >= np.quantile(distance, 0.9)].mean(0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(ink - COLOURS[name])))

"""A folder of named pictures in memory: what training draws from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from tide.errors import TideError
from tide.files import parse_json, read_text
from tide.images import open_picture
from tide.images.tensors import to_tensor

#: Pictures are as large as those of the bundled VAE and transformer.
SIZE = 64
#: How far a picture is moved, in pixels, and how much smaller it is made, at most. More would cut off what reaches
#: the edge.
_SHIFT, _SMALLER = 3, 0.12
#: Words and punctuation as the tokenizer splits them.
_TOKEN = re.compile(r"\w+|[^\w\s]+")
_MOST_TOKENS = 64
#: Weights are added up in float32.
HEAVIEST = 1e6


class Picture(TypedDict):
    """A line of ``metadata.jsonl``; other columns are ignored."""

    file_name: str
    text: str
    texts: NotRequired[list[str]]
    weight: NotRequired[float]
    flip: NotRequired[bool]


def captions_of(picture: Picture) -> list[str]:
    """Lower-case captions, the usual one first."""
    return [text.lower() for text in (picture["text"], *picture.get("texts", []))]


def words_of(pictures: Sequence[Picture]) -> tuple[list[str], int]:
    """The words of all captions, the most frequent first, and the tokens of the longest caption with its end mark."""
    captions = [_TOKEN.findall(text) for picture in pictures for text in captions_of(picture)]
    counts = Counter(word for caption in captions for word in caption)
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return words, min(_MOST_TOKENS, 1 + max(map(len, captions)))


@dataclass(frozen=True)
class Pictures:
    """``images`` uint8 ``[n, 3, 64, 64]`` and their ``rows``; ``weights [n]`` say how often each is drawn."""

    rows: list[Picture]
    images: Tensor
    weights: Tensor

    @classmethod
    def read(cls, folder: Path) -> Pictures:
        """Raises :class:`~tide.errors.TideError` for a folder without a list, or a list with faulty lines."""
        path = folder / "metadata.jsonl"
        lines = read_text(path).split("\n")
        rows = [_row(line, f"{path} line {i}") for i, line in enumerate(lines, 1) if line.strip()]
        if not rows:
            raise TideError(f"{path} lists no pictures")
        images = [to_tensor(open_picture(folder / row["file_name"]), SIZE) for row in rows]
        weights = torch.tensor([float(row.get("weight", 1)) for row in rows])
        if not bool(weights.any()):
            raise TideError(f"{path} gives every picture the weight 0; leave the weights out")
        return cls(rows, torch.stack([((image + 1) * 127.5).round().byte() for image in images]), weights)

    def image(self, i: int) -> Tensor:
        """``[3, 64, 64]`` in [-1, 1]."""
        return self.images[i].float() / 127.5 - 1

    def some(self, n: int) -> Tensor:
        """``[n, 3, 64, 64]``: pictures at even distances in the list, at most ``n``."""
        return torch.stack([self.image(i) for i in range(0, len(self.rows), -(-len(self.rows) // n))])

    def moved(self, i: int, source: torch.Generator) -> Tensor:
        """The picture moved and made smaller by chance, on its own corner's colour, and mirrored if that fits it.

        Colours, contrast and larger turns stay as they are: captions name colours, and pictures have an upper side.
        """
        mirror, smaller, dx, dy = torch.rand(4, generator=source).tolist()
        scale = 1 / (1 - _SMALLER * smaller)
        x = -scale if mirror < 0.5 and self.rows[i].get("flip", False) else scale
        shift = [2 * _SHIFT / SIZE * (2 * each - 1) for each in (dx, dy)]
        grid = affine_grid(torch.tensor([[[x, 0, shift[0]], [0, scale, shift[1]]]]), [1, 3, SIZE, SIZE], False)
        image = self.image(i)
        corner = image[:, :1, :1]
        return corner + grid_sample((image - corner)[None], grid, align_corners=False)[0]


def _row(line: str, where: str) -> Picture:
    row = parse_json(line, where, dict[str, Any])
    if missing := [name for name in ("file_name", "text") if name not in row]:
        raise TideError(f"{where} has no {' and no '.join(missing)}; add what is missing")
    kinds = {"file_name": str, "text": str, "texts": list, "weight": int | float, "flip": bool}
    wrong = [name for name, kind in kinds.items() if name in row and not isinstance(row[name], kind)]
    if wrong or not all(isinstance(text, str) for text in row.get("texts", [])):
        raise TideError(f"{where} has a {wrong[0] if wrong else 'texts'} of another kind than expected; correct it")
    if not 0 <= row.get("weight", 1) <= HEAVIEST:
        raise TideError(f"{where}: weight is {row['weight']!r}; give a number from 0 to {HEAVIEST:g}")
    return cast(Picture, row)

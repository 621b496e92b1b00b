"""What activations are collected from: images with captions, or prompts, and the fingerprints that identify them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from tide.activations.data import Samples
from tide.errors import TideError
from tide.files import read_text
from tide.images.identity import Sample, digest, digest_of


@dataclass(frozen=True)
class Source:
    """Batches of images ``[B, 3, H, W]`` in [-1, 1] with captions, read again at every iteration.

    Results record it as ``name``, with ``options`` where they matter. It gives at most ``n_images`` images, and exactly
    that many if ``exact``; ``limited`` means that there may be more images than were asked for.
    """

    name: str
    size: tuple[int, int]
    n_images: int
    batches: Samples
    exact: bool = True
    limited: bool = False
    options: dict[str, str] = field(default_factory=dict)
    #: The share of the data that is reserved.
    hold_out: float = 0.0

    def __iter__(self) -> Iterator[tuple[Tensor, Sequence[str]]]:
        return self.from_sample(0)

    def from_sample(self, start: int) -> Iterator[tuple[Tensor, Sequence[str]]]:
        """As an iteration that leaves out the first ``start`` images."""
        left = self.n_images - start
        for images, captions in self.batches.from_sample(start):
            if left > 0:
                yield images[:left], captions[:left]
            left -= len(images)
            if left <= 0:
                return

    def prompts(self, size: tuple[int, int]) -> Prompts:
        """The captions, to sample images of ``size`` from."""
        texts = tuple(caption for _, captions in self for caption in captions)
        return Prompts(self.name, size, texts, self.limited, self.options)

    def samples(self) -> list[Sample]:
        """What the last iteration read."""
        return self.batches.samples[: self.n_images]

    def samples_before(self, n: int) -> list[Sample]:
        """What the first ``n`` images and captions are, and perhaps some after them. Reads the files of all of these,
        and decodes none but the next, where the data can do so."""
        next(self.batches.from_sample(n), None)
        return self.batches.samples

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the images read, their order and their captions.

        Reads every image file once, as long as a copy of the folder takes. A named data set is not read for it: there
        they tell name, split, columns and the number of images.
        """
        if self.batches.skips:
            return digest_of(self.samples_before(self.n_images)[: self.n_images])
        return digest(repr((self.name, sorted(self.options.items()), self.n_images)))


@dataclass(frozen=True)
class Prompts:
    """Prompts ``texts``, from which images of ``size`` (height, width in pixels) are sampled.

    ``name``, ``limited`` and ``options`` are those of :class:`Source`.
    """

    name: str
    size: tuple[int, int]
    texts: tuple[str, ...]
    limited: bool = False
    options: dict[str, str] = field(default_factory=dict)

    @property
    def n_images(self) -> int:
        return len(self.texts)

    def samples(self) -> list[Sample]:
        return [Sample(f"prompt {i}", "", digest(text)) for i, text in enumerate(self.texts)]

    def samples_before(self, n: int) -> list[Sample]:
        return self.samples()


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty. Raises :class:`~tide.errors.TideError` if there are none."""
    lines = [line.strip() for line in read_text(Path(path)).splitlines()]
    if not any(lines):
        raise TideError(f"{path} holds no prompts; write one a line")
    return [line for line in lines if line]

"""Batches of images and captions, with a record of what was read."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from tide.errors import TideError, TideWarning
from tide.images.identity import UNREAD, Sample, digest
from tide.images.order import continuing, held_out, seeded
from tide.images.sets import ImageSet
from tide.images.tensors import Size

OnError = Literal["raise", "skip"]
_Pair = tuple[Tensor, str]
T = TypeVar("T")


class Samples(ABC):
    """Batches of images and captions, read again at every iteration, with a record of what was read.

    ``samples`` holds a :class:`~tide.images.identity.Sample` for every image that the last iteration passed.
    """

    #: Whether samples that are left out cost no more than reading their files.
    skips: ClassVar[bool] = True

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples: list[Sample] = []
        #: Whether it was said how many images have no caption.
        self.told = False
        #: Digests of images that are left out.
        self.excluded: frozenset[str] = frozenset()
        #: The number of the first image whose file the record needs.
        self.recorded_from = 0

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Batches of images ``[B, 3, H, W]`` float32 in [-1, 1] and their captions."""
        return self.from_sample(0)

    def from_sample(self, start: int) -> Iterator[tuple[Tensor, list[str]]]:
        """An iteration without the first ``start`` images. ``samples`` records them, too, once the first batch is
        read."""
        self.samples = []
        return _batched(self._pairs(start, self.samples), self.batch_size)

    def samples_before(self, n: int) -> list[Sample]:
        """What the first ``n`` images and captions are. Reads their files, and decodes none where the data can do
        so."""
        self.samples = []
        if n > 0:
            next(self._pairs(n - 1, self.samples), None)
        return self.samples

    def captions(self) -> Iterator[str]:
        """All captions, without the images where the data can do so."""
        return (caption for _, captions in self for caption in captions)

    def without(self, digests: Collection[str]) -> Self:
        """The same without the images whose digests these are."""
        found = copy.copy(self)
        found.samples, found.excluded = [], self.excluded | frozenset(digests)
        return found

    def beginning_with(self, recorded: Mapping[int, Sample], n: int = 0) -> Self:
        """The same images, those that are ``recorded`` (place -> sample) at their places if the order is free.

        ``n``: how many were read then; of a damaged part nothing is recorded.
        """
        return self

    def recording_from(self, first: int) -> Self:
        """The same images, but ``samples`` holds :data:`~tide.images.identity.UNREAD` for those before number
        ``first`` where their files need not be read."""
        found = copy.copy(self)
        found.samples, found.recorded_from = [], first
        return found

    def listing(self, n: int) -> str:
        """A digest of the names of the first ``n`` images in their order; "" where they are not known unread."""
        return ""

    def tell(self, without_caption: int, n: int) -> None:
        """Warns of images without a caption among the ``n`` that were read, unless that was said before."""
        if without_caption and not self.told:
            warn_of_captions(without_caption, n, "that were read", "fill the captions' column", stacklevel=4)
            self.told = True

    @abstractmethod
    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        """Images and captions from ``start`` on; appends every sample to ``samples``, also those before ``start``."""


class Selected(Samples):
    """The images of a set in an order that depends on ``seed`` and their names (:mod:`tide.images.order`; None: in the
    set's own order), without a share that is held out. Images before the start of an iteration are not decoded, except
    with ``on_error="skip"``, because only decoding shows which ones are unreadable."""

    def __init__(
        self,
        images: ImageSet,
        size: Size,
        batch_size: int,
        *,
        on_error: OnError = "raise",
        seed: int | None = 0,
        hold_out: float = 0.0,
    ) -> None:
        super().__init__(batch_size)
        self.images, self.size, self.on_error = images, size, on_error
        self.names = [images.name(i) for i in range(len(images))]
        reserved = held_out(self.names, hold_out)
        order = range(len(self.names)) if seed is None else seeded(self.names, seed)
        self.order = [i for i in order if i not in reserved]

    def __len__(self) -> int:
        """How many images there are, without those held out."""
        return len(self.order)

    def beginning_with(self, recorded: Mapping[int, Sample], n: int = 0) -> Self:
        found = copy.copy(self)
        found.samples = []
        found.order = continuing(self.names, self.order, {place: each.name for place, each in recorded.items()}, n)
        return found

    def samples_before(self, n: int) -> list[Sample]:
        if self.on_error == "skip":
            return super().samples_before(n)
        self.samples = [self._sample(i, number) for number, i in enumerate(islice(self._kept(), n))]
        return self.samples

    def listing(self, n: int) -> str:
        return digest("\n".join(self.names[i] for i in self.order[:n]))

    def captions(self) -> Iterator[str]:
        if self.on_error == "skip":
            return super().captions()
        return map(self.images.caption, self._kept())

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        for i in self._kept():
            if len(samples) < start and self.on_error == "raise":
                samples.append(self._sample(i, len(samples)))
                continue
            if (image := readable(partial(self.images.tensor, i, self.size), self.on_error)) is None:
                continue
            samples.append(self.images.sample(i))
            if len(samples) > start:
                yield image, self.images.caption(i)

    def _sample(self, i: int, number: int) -> Sample:
        return UNREAD if number < self.recorded_from else self.images.sample(i)

    def _kept(self) -> Iterator[int]:
        """The numbers of the images that are not left out; of what is left out only the digest is read."""
        for i in self.order:
            content = readable(partial(self.images.digest, i), self.on_error) if self.excluded else ""
            if content is not None and content not in self.excluded:
                yield i


def warn_of_captions(without: int, n: int, which: str, remedy: str, *, stacklevel: int = 3) -> None:
    """Warns that ``without`` of the ``n`` images have no caption."""
    images = f"of the {n:,} images {which}"
    lack = "has no caption and gets" if without == 1 else "have no caption and get"
    said = f"{without:,} {images} {lack}" if without < n else f"none {images} has a caption: all get"
    if n == 1:
        said = f"the only image {which} has no caption and gets"
    warnings.warn(f"{said} the empty prompt; {remedy}", TideWarning, stacklevel=stacklevel)


def readable(opened: Callable[[], T], on_error: OnError) -> T | None:
    """What ``opened`` reads of an image; None, after a warning, if it is unreadable and ``on_error`` is "skip"."""
    try:
        return opened()
    except TideError as error:
        if on_error == "raise":
            raise TideError(f"{error}, or skip unreadable images") from None
        warnings.warn(f"{error}; skipped", TideWarning, stacklevel=3)
        return None


def _batched(pairs: Iterable[_Pair], batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
    images: list[Tensor] = []
    captions: list[str] = []
    for image, caption in pairs:
        images.append(image)
        captions.append(caption)
        if len(images) == batch_size:
            yield torch.stack(images), captions
            images, captions = [], []
    if images:
        yield torch.stack(images), captions

"""Batches of images and captions, with a record of what was read."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import ClassVar, Literal, Self

import torch
from PIL import Image
from torch import Tensor

from tide.errors import TideError, TideWarning
from tide.images.identity import Sample
from tide.images.order import continuing, held_out, seeded
from tide.images.sets import ImageSet
from tide.images.tensors import Size, to_tensor

OnError = Literal["raise", "skip"]
_Pair = tuple[Tensor, str]


class Samples(ABC):
    """Batches of images and captions, read again at every iteration, with a record of what was read.

    ``samples`` holds a :class:`~tide.images.identity.Sample` for every image that the last iteration passed.
    """

    #: Whether samples that are left out cost no more than reading their files.
    skips: ClassVar[bool] = True

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.samples: list[Sample] = []
        #: Digests of images that are left out.
        self.excluded: frozenset[str] = frozenset()

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
        next(self._pairs(n, self.samples), None)
        return self.samples

    def without(self, digests: Collection[str]) -> Self:
        """The same without the images whose digests these are."""
        found = copy.copy(self)
        found.samples, found.excluded = [], self.excluded | frozenset(digests)
        return found

    def beginning_with(self, recorded: Mapping[int, Sample]) -> Self:
        """The same images, those that are ``recorded`` (place -> sample) at their places if the order is free."""
        return self

    @abstractmethod
    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        """Images and captions from ``start`` on; appends every sample to ``samples``, also those before ``start``."""


class Selected(Samples):
    """The images of a set in an order that depends on ``seed`` and their names (:mod:`tide.images.order`), without a
    share that is held out. Images before the start of an iteration are not decoded, except with ``on_error="skip"``,
    because only decoding shows which ones are unreadable."""

    def __init__(
        self,
        images: ImageSet,
        size: Size,
        batch_size: int,
        *,
        on_error: OnError = "raise",
        seed: int = 0,
        hold_out: float = 0.0,
    ) -> None:
        super().__init__(batch_size)
        self.images, self.size, self.on_error = images, size, on_error
        self.names = [images.name(i) for i in range(len(images))]
        reserved = held_out(self.names, hold_out)
        self.order = [i for i in seeded(self.names, seed) if i not in reserved]

    def __len__(self) -> int:
        """How many images there are, without those held out."""
        return len(self.order)

    def beginning_with(self, recorded: Mapping[int, Sample]) -> Self:
        found = copy.copy(self)
        found.samples = []
        found.order = continuing(self.names, self.order, {place: each.name for place, each in recorded.items()})
        return found

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[_Pair]:
        for i in self.order:
            if self.excluded and self.images.digest(i) in self.excluded:
                continue
            if len(samples) < start and self.on_error == "raise":
                samples.append(self.images.sample(i))
                continue
            picture = readable(lambda i=i: self.images.picture(i), self.on_error)  # type: ignore[misc]
            if picture is None:
                continue
            samples.append(self.images.sample(i))
            if len(samples) > start:
                yield to_tensor(picture, self.size), self.images.caption(i)


def readable(opened: Callable[[], Image.Image], on_error: OnError) -> Image.Image | None:
    """The picture; None, after a warning, if it is unreadable and ``on_error`` is "skip"."""
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

"""What activations are collected from: images with captions, or prompts, and the fingerprints that identify them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from tide.errors import TideError
from tide.files import read_text
from tide.images.identity import Sample, digest, digest_of
from tide.images.order import continuing
from tide.images.samples import Samples

#: The option of a data set's images that says what their digests are of. Earlier versions, which lack it, took resized
#: images.
DIGESTS = "digests"


@dataclass(frozen=True)
class Source:
    """Batches of images ``[B, 3, H, W]`` in [-1, 1] with captions, read again at every iteration.

    Results record it as ``name``, with ``options`` where they matter. It gives at most ``n_images`` images, and exactly
    that many if ``exact``; ``limited`` means that there may be more images than were asked for. Messages call the data
    ``shown``, which hold ``total`` images, if that is known. Of these a share ``hold_out`` is left out. ``notes`` are
    sentences on what is read.

    Attributes:
        name: what results call the data.
        size: height and width of the images in pixels.
        n_images: the most images that a pass gives.
        batches: iterated over for each pass; gives images with their captions.
        exact: a pass gives exactly ``n_images``.
        limited: there may be more images than were asked for.
        options: what results record beside the name.
        shown: what messages call the data.
        total: images of the data, if known.
        hold_out: the share of them that is left out.
        notes: sentences on what is read.
    """

    name: str
    size: tuple[int, ...]
    n_images: int
    batches: Samples
    exact: bool = True
    limited: bool = False
    options: dict[str, str] = field(default_factory=dict)
    shown: str = ""
    total: int | None = None
    hold_out: float = 0.0
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[Tensor, Sequence[str]]]:
        return self.from_sample(0)

    def from_sample(self, start: int) -> Iterator[tuple[Tensor, Sequence[str]]]:
        """As an iteration that leaves out the first ``start`` images."""
        left = self.n_images - start
        without = 0
        for images, captions in self.batches.from_sample(start):
            if left > 0:
                yield images[:left], captions[:left]
                without += captions[:left].count("")
            left -= len(images)
            if left <= 0:
                break
        self.batches.tell(without, len(self.samples()))

    @property
    def described(self) -> str:
        """The images in words, such as "60 of the 600 images of photos/"; once images were read that may be fewer than
        ``n_images``, how many these were."""
        n, data = self.n_images, self.shown or self.name
        if not self.exact:
            n = len(self.samples()) or n
        images = "image" if n == 1 else "images"
        if self.total is None:
            return f"{n:,} {images} of {data}"
        return f"the {n:,} {images} of {data}" if n == self.total else f"{n:,} of the {self.total:,} images of {data}"

    def without(self, digests: Collection[str]) -> Source:
        """The same without the images whose :attr:`~tide.images.identity.Sample.image` is among ``digests``; of the
        others as many as there are, at most ``n_images``."""
        return replace(self, batches=self.batches.without(digests), exact=False)

    def beginning_with(self, recorded: Mapping[int, Sample], n: int = 0) -> Source:
        """The same images, those that are ``recorded`` (place -> sample) at their places, as far as the order of the
        data is free. ``n``: how many were read then."""
        return replace(self, batches=self.batches.beginning_with(recorded, n))

    def recording_from(self, first: int) -> Source:
        """The same images; the files of those before number ``first`` are not read where that can be avoided."""
        return replace(self, batches=self.batches.recording_from(first))

    def listing(self) -> str:
        """A digest of the images' names in their order, which reads no image; "" for data that are streamed or
        rendered."""
        return self.batches.listing(self.n_images)

    def prompts(self, size: tuple[int, ...]) -> Prompts:
        """The captions, to sample images of ``size`` from."""
        texts = tuple(islice(self.batches.captions(), self.n_images))
        return Prompts(
            self.name, size, texts, self.limited, self.options, ordered=False, hold_out=self.hold_out, notes=self.notes
        )

    def samples(self) -> list[Sample]:
        """What the last iteration read."""
        return self.batches.samples[: self.n_images]

    def samples_between(self, start: int, end: int) -> list[Sample]:
        """Those from number ``start`` to ``end - 1``."""
        return self.batches.samples[start : min(end, self.n_images)]

    def samples_before(self, n: int) -> list[Sample]:
        """What the first ``n`` images and captions are. Reads the files of all of these, and decodes none where the
        data can do so."""
        return self.batches.samples_before(n)

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

    ``ordered``: their order is the caller's, and not that of captions which were drawn from images. The other fields
    are those of :class:`Source`.

    Attributes:
        name: what results call them.
        size: height and width of the images in pixels.
        texts: the prompts, one an image.
        limited: there may be more prompts than were asked for.
        options: what results record beside the name.
        ordered: their order is the caller's.
        hold_out: the share of the prompts that is left out.
        notes: sentences on what is read.
    """

    name: str
    size: tuple[int, ...]
    texts: tuple[str, ...]
    limited: bool = False
    options: dict[str, str] = field(default_factory=dict)
    ordered: bool = True
    hold_out: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """How many images are sampled: one for each prompt."""
        return len(self.texts)

    def samples(self) -> list[Sample]:
        """A sample for each prompt, named by its number and told apart by the digest of its text."""
        return self.samples_between(0, self.n_images)

    def samples_between(self, start: int, end: int) -> list[Sample]:
        """The samples from number ``start`` to before ``end``."""
        return [Sample(f"prompt {i}", "", digest(text)) for i, text in enumerate(self.texts[start:end], start)]

    def samples_before(self, n: int) -> list[Sample]:
        """All samples, whatever ``n``: prompts are known before anything is drawn."""
        return self.samples()

    def recording_from(self, first: int) -> Prompts:
        """Itself: prompts need no pass over the data to be recorded, whatever ``first``."""
        return self

    def listing(self) -> str:
        """A digest of the prompts in their order."""
        return digest("\n".join(self.texts))

    def beginning_with(self, recorded: Mapping[int, Sample], n: int = 0) -> Prompts:
        """The same prompts; if they are not ``ordered``, those ``recorded`` (place -> sample) at their places."""
        if self.ordered:
            return self
        own = _numbered([digest(text) for text in self.texts])
        places = sorted(recorded)
        before = dict(zip(places, _numbered([recorded[place].caption for place in places]), strict=True))
        order = continuing(own, range(len(own)), before, n)
        return replace(self, texts=tuple(self.texts[i] for i in order))


def check_source(source: object, *, prompts: bool = False) -> None:
    """Raises :class:`~tide.errors.TideError` for what is no :class:`Source`, nor :class:`Prompts` where these serve."""
    if not isinstance(source, (Source, Prompts) if prompts else Source):
        raise TideError(
            f"data of type {type(source).__name__} are given; open images with tide.open_source(data, adapter)"
            f"{', or give tide.Prompts' if prompts else ''}"
        )


def _numbered(names: Sequence[str]) -> list[str]:
    """The names, each with how often it came before, so that no two are alike."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}/{seen[name]}")
        seen[name] += 1
    return found


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty. Raises :class:`~tide.errors.TideError` if there are none.

    A line ends at a line feed alone: U+2028 and other separators may stand in a prompt.
    """
    lines = [line.strip() for line in read_text(Path(path)).split("\n")]
    if not any(lines):
        raise TideError(f"{path} holds no prompts; write one a line")
    return [line for line in lines if line]

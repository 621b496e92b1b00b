"""The images and captions that ``--data`` names, a known number of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tide.activations.data import ImageFolder, Samples, open_data
from tide.activations.identity import Sample, digest, digest_of
from tide.cli.common import BUNDLED, pipeline_name
from tide.errors import TideError
from tide.scenes import images_of, prompts
from tide.scenes.scene import Split

#: Images of ``--data scenes`` unless ``--images`` says otherwise.
DEFAULT_SCENES = 512
SCENE_PIXELS = 64


@dataclass(frozen=True)
class Source:
    """Batches of images ``[B, 3, H, W]`` in [-1, 1] with captions, read anew at every iteration.

    ``name`` is how results record it, with ``options`` where they matter; ``n_images`` is the most that it gives, and
    how many it gives if ``exact``; ``limited`` says that there may be more, which were not asked for.
    """

    name: str
    size: tuple[int, int]
    n_images: int
    batches: Samples
    exact: bool = True
    limited: bool = False
    options: dict[str, str] = field(default_factory=dict)

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

    def captions(self) -> list[str]:
        return [caption for _, captions in self for caption in captions]

    def samples(self) -> list[Sample]:
        """What the last iteration came past."""
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
        if isinstance(self.batches, ImageFolder | _Scenes):
            return digest_of(self.samples_before(self.n_images)[: self.n_images])
        return digest(repr((self.name, sorted(self.options.items()), self.n_images)))


class _Scenes(Samples):
    def __init__(self, split: Split, n: int, seed: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.pairs = prompts(split, n, seed)

    def _pairs(self, start: int, samples: list[Sample]) -> Iterator[tuple[Tensor, str]]:
        for i, (scene, caption) in enumerate(self.pairs):
            samples.append(Sample(f"scene {i}", digest(repr(scene)), digest(caption)))
            if i >= start:
                yield images_of([scene])[0], caption


def open_source(args: argparse.Namespace, size: tuple[int, int], *, scene_split: Split = "train") -> Source:
    """What ``--data`` names, limited to ``--images``; ``scenes`` are rendered of combinations of ``scene_split``."""
    batch_size = args.batch_size
    if args.data == BUNDLED:
        if args.size not in (None, (SCENE_PIXELS, SCENE_PIXELS)):
            raise TideError(f"scenes are {SCENE_PIXELS} x {SCENE_PIXELS} pixels; leave --size off")
        n = args.images or DEFAULT_SCENES
        return Source(BUNDLED, (SCENE_PIXELS,) * 2, n, _Scenes(scene_split, n, args.seed, batch_size), limited=True)
    data = open_data(
        args.data,
        size,
        batch_size=batch_size,
        on_error="skip" if args.skip_unreadable else "raise",
        split=args.split,
        image_column=args.image_column,
        caption_column=args.caption_column,
    )
    name = pipeline_name(args.data)
    if isinstance(data, ImageFolder):
        n = min(args.images or len(data), len(data))
        return Source(name, size, n, data, exact=not args.skip_unreadable, limited=n < len(data))
    if not args.images:
        raise TideError(f"how many images of {args.data} to read is not known; give --images")
    options = {"split": args.split, "image_column": args.image_column, "caption_column": args.caption_column}
    return Source(name, size, args.images, data, exact=False, limited=True, options=options)

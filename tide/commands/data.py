"""The images and captions that ``--data`` names, a known number of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tide.activations.data import ImageFolder, open_data
from tide.commands.common import BUNDLED, pipeline_name
from tide.errors import TideError
from tide.scenes import images_of, prompts
from tide.scenes.scene import Split

#: Images of ``--data scenes`` unless ``--images`` says otherwise.
DEFAULT_SCENES = 512
SCENE_PIXELS = 64


@dataclass(frozen=True)
class Source:
    """Batches of images ``[B, 3, H, W]`` in [-1, 1] with captions, read anew at every iteration.

    ``name`` is how results record it; ``n_images`` is the most that it gives, and how many it gives if ``exact``.
    """

    name: str
    size: tuple[int, int]
    n_images: int
    batches: Any
    exact: bool = True

    def __iter__(self) -> Iterator[tuple[Tensor, Sequence[str]]]:
        left = self.n_images
        for images, captions in self.batches:
            yield images[:left], captions[:left]
            left -= len(images[:left])
            if not left:
                return

    def captions(self) -> list[str]:
        return [caption for _, captions in self for caption in captions]


class _Scenes:
    def __init__(self, split: Split, n: int, seed: int, batch_size: int) -> None:
        self.pairs = prompts(split, n, seed)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        for start in range(0, len(self.pairs), self.batch_size):
            part = self.pairs[start : start + self.batch_size]
            yield images_of([scene for scene, _ in part]), [caption for _, caption in part]


def open_source(args: argparse.Namespace, size: tuple[int, int], *, scene_split: Split = "train") -> Source:
    """What ``--data`` names, limited to ``--images``; ``scenes`` are rendered of combinations of ``scene_split``."""
    batch_size = args.batch_size
    if args.data == BUNDLED:
        if args.size not in (None, (SCENE_PIXELS, SCENE_PIXELS)):
            raise TideError(f"scenes are {SCENE_PIXELS} x {SCENE_PIXELS} pixels; leave --size off")
        n = args.images or DEFAULT_SCENES
        return Source(BUNDLED, (SCENE_PIXELS,) * 2, n, _Scenes(scene_split, n, args.seed, batch_size))
    data = open_data(
        args.data,
        size,
        batch_size=batch_size,
        on_error="skip" if args.skip_unreadable else "raise",
        split=args.split,
        image_column=args.image_column,
        caption_column=args.caption_column,
    )
    if isinstance(data, ImageFolder):
        n = min(args.images or len(data), len(data))
    elif args.images:
        n = args.images
    else:
        raise TideError(f"how many images of {args.data} to read is not known; give --images")
    exact = isinstance(data, ImageFolder) and not args.skip_unreadable
    return Source(pipeline_name(args.data), size, n, data, exact)

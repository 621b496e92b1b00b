"""Which images a checkpoint was trained on, so that measurements on them are not called held-out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor

from tide.errors import TideError
from tide.files.schema import check_schema
from tide.images.identity import PIXELS, Sample
from tide.messages import one_line

#: Bytes of a digest: whether it is of pixels (1) or not (0), and 16 hexadecimal digits.
_BYTES = 9
_DIGEST = re.compile(rf"(?:{PIXELS})?[0-9a-f]{{16}}")

#: What images are to a checkpoint: none of them trained it, some or all did, or it does not record which did.
Kind = Literal["held-out", "training", "unrecorded"]


class Recorded(TypedDict):
    """What ``config.json`` says; the digests lie beside the weights."""

    data: list[str]
    images: int
    hold_out: float


@dataclass(frozen=True)
class TrainedOn:
    """The images that trained a checkpoint.

    Attributes:
        data: names or folders of the data.
        images: digests of the images (:class:`~tide.images.identity.Sample`). Empty where images were sampled from
            prompts.
        hold_out: the share of the data that was reserved, in [0, 1).
    """

    data: tuple[str, ...]
    images: frozenset[str]
    hold_out: float = 0.0

    @classmethod
    def of(cls, data: Iterable[str], samples: Iterable[Sample], hold_out: float = 0.0) -> TrainedOn:
        """Those of ``samples``. Raises :class:`~tide.errors.TideError` for a sample without a valid digest."""
        images = frozenset(sample.image for sample in samples if sample.image)
        if wrong := next((each for each in images if not _DIGEST.fullmatch(each)), None):
            raise TideError(f"{one_line(wrong)} is not the digest of an image; collect these activations again")
        return cls(tuple(dict.fromkeys(data)), images, hold_out)

    def __or__(self, other: TrainedOn) -> TrainedOn:
        """The images of both; of their reserved shares the smaller."""
        data = tuple(dict.fromkeys((*self.data, *other.data)))
        return TrainedOn(data, self.images | other.images, min(self.hold_out, other.hold_out))

    def recorded(self) -> Recorded:
        return {"data": list(self.data), "images": len(self.images), "hold_out": self.hold_out}

    def digests(self) -> Tensor:
        """``[images, 9]`` uint8, in ascending order: 1 for a digest of pixels, else 0, and the digest."""
        rows = sorted(f"{each.startswith(PIXELS):02x}{each.removeprefix(PIXELS)}" for each in self.images)
        content = bytearray.fromhex("".join(rows))
        return torch.tensor(content, dtype=torch.uint8).reshape(-1, _BYTES)

    @classmethod
    def read(cls, recorded: Any, digests: Tensor | None, where: str) -> TrainedOn:
        """The inverse of :meth:`recorded` and :meth:`digests`; ``where`` they were read, for messages.

        Raises :class:`~tide.errors.TideError` if they do not fit each other.
        """
        check_schema(recorded, Recorded, f"{where} (trained_on)")
        if digests is None or digests.dtype != torch.uint8 or digests.shape != (recorded["images"], _BYTES):
            found = "none" if digests is None else f"{digests.dtype} {list(digests.shape)}"
            raise TideError(
                f"{where}: trained_on is of {recorded['images']} images and their digests are {found}; the files "
                "are of different checkpoints, or damaged"
            )
        rows = bytes(digests.contiguous().numpy()).hex()
        size = 2 * _BYTES
        each = (rows[i : i + size] for i in range(0, len(rows), size))
        images = frozenset(f"{PIXELS if row.startswith('01') else ''}{row[2:]}" for row in each)
        return cls(tuple(recorded["data"]), images, recorded["hold_out"])


class Readable(Protocol):
    """What :func:`unseen` needs of a :class:`~tide.activations.source.Source`."""

    def without(self: S, digests: Collection[str]) -> S: ...

    def samples_before(self, n: int) -> list[Sample]: ...


S = TypeVar("S", bound=Readable)


@dataclass(frozen=True)
class Unseen(Generic[S]):
    """Images to measure a checkpoint on, and what they are to it."""

    source: S
    kind: Kind

    @property
    def words(self) -> str:
        """What to call them: "held-out images", "training images" or "images"."""
        return "images" if self.kind == "unrecorded" else f"{self.kind} images"


def unseen(source: S, trained_on: TrainedOn | None, least: int) -> Unseen[S]:
    """``source`` without the images that the checkpoint was trained on, if ``least`` are left or none had to be left
    out; all of it otherwise.

    Unrecorded are also the images of a checkpoint that was trained on sampling runs of prompts, and images that were
    given decoded where it was trained on files, or the other way round: their digests cannot be compared.

    Reads the files of the images once, up to the ``least`` that are left, and decodes none where the data allow it.
    """
    if trained_on is None or not trained_on.images:
        return Unseen(source, "unrecorded")
    rest = source.without(trained_on.images)
    found = rest.samples_before(least)[:least]
    if not {_kind(sample.image) for sample in found} <= {_kind(image) for image in trained_on.images}:
        return Unseen(source, "unrecorded")
    if len(found) == least or len(found) == len(source.samples_before(least)[:least]):
        return Unseen(rest, "held-out")
    return Unseen(source, "training")


def _kind(image: str) -> bool:
    """What a digest is of: True for pixels. A file and its pixels have different ones."""
    return image.startswith(PIXELS)

"""What a set of images offers: any of them by its number, with its name, its caption and its digest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from tide.errors import TideError
from tide.images.identity import Sample, digest
from tide.images.tensors import Size, n_frames_of, to_clip, to_tensor


class ImageSet(ABC):
    """Images with captions at random access. Nothing is decoded but by :meth:`picture`.

    ``shown`` is what messages call the set; ``notes`` are sentences on where the captions come from.
    """

    shown: str
    notes: tuple[str, ...] = ()
    #: What results record besides the data's name: columns, where there are several.
    options: Mapping[str, str] = {}
    #: What a user can do about missing captions.
    how_to_caption: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """What tells the image from the others of the set: a file's path below the folder, or a row's number."""

    @abstractmethod
    def caption(self, i: int) -> str:
        """The prompt; "" where there is none."""

    @abstractmethod
    def digest(self, i: int) -> str:
        """Of the file's bytes, or of the upright RGB pixels of an image that is given decoded; whatever size it is
        used at."""

    @abstractmethod
    def picture(self, i: int) -> Image.Image:
        """The image, upright and in mode RGB. Raises :class:`~tide.errors.TideError` for an unreadable one."""

    def frames(self, i: int, n: int) -> list[Image.Image]:
        """The ``n`` frames in the middle of the clip, as :meth:`picture` gives them. Raises
        :class:`~tide.errors.TideError` for a set of pictures."""
        raise TideError(f"{self.shown} holds pictures and this pipeline draws videos; give clips")

    def tensor(self, i: int, size: Size) -> Tensor:
        """The image as :func:`~tide.images.tensors.to_tensor` gives it; of a size with frames the clip."""
        n = n_frames_of(size)
        return to_tensor(self.picture(i), size) if n is None else to_clip(self.frames(i, n), size)

    def without_caption(self) -> int:
        """How many images have no caption, as far as this is known without reading the images."""
        return sum(not self.caption(i) for i in range(len(self)))

    def sample(self, i: int) -> Sample:
        return Sample(self.name(i), self.digest(i), digest(self.caption(i)))

"""What names of latents are found by, read from an index a piece at a time, and the names that its labels are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from io import BytesIO
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.errors import TideError
from tide.evaluation.statistics import auroc
from tide.files.rows import Rows
from tide.images.words import folded, holds
from tide.index.layout import FIRING
from tide.index.reading import Index
from tide.interpretation.atlas_reading import most_labelled
from tide.interpretation.image_scores import FEWEST
from tide.interpretation.names import Entry, Score, now

#: Peaks that are held at a time.
SIZE = 2**24
#: The least and the most positive number that half precision holds.
_LEAST, _MOST = float(np.finfo(np.float16).smallest_subnormal), float(np.finfo(np.float16).max)


def peaks(
    index: Index, latents: Sequence[int] | None = None, *, at_once: int | None = None
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """The peaks of ``latents`` (default: of all) in all images, a piece after the other: the numbers of some latents
    and their columns ``[images, some]`` float32, 0 where a latent is silent.

    ``at_once``: latents in a piece; default as many as make :data:`SIZE` peaks.

    ``index`` is read a piece at a time.

    Raises :class:`~tide.errors.TideError` for a latent that does not exist, and for files that are damaged.
    """
    chosen: Sequence[int] = range(index.n_latents) if latents is None else latents
    for latent in () if latents is None else latents:
        index.check_latent(latent)
    at_once = max(1, SIZE // index.n_images) if at_once is None else at_once
    with ExitStack() as stack:
        starts, images, values = (
            stack.enter_context(closing(Rows(index.folder / FIRING, name))) for name in ("starts", "images", "peaks")
        )
        first = starts[:]
        for at in range(0, len(chosen), at_once):
            part = chosen[at : at + at_once]
            rows = np.zeros((len(part), index.n_images), np.float32)
            for row, latent in zip(rows, part, strict=True):
                fires = slice(int(first[latent]), int(first[latent + 1]))
                row[images[fires]] = _finite(values[fires])
            yield part, torch.from_numpy(rows).T


def captions(index: Index) -> list[str]:
    """The captions of all images, as an index keeps them: long ones are shortened
    (:func:`~tide.interpretation.atlas.shortened`)."""
    return [row["caption"] for row in index.query("SELECT caption FROM images ORDER BY image")]


class Pictures(Sequence[np.ndarray]):
    """The pictures of an index, uint8 ``[H, W, 3]``, each read when it is asked for."""

    def __init__(self, index: Index) -> None:
        self._open = index

    def __len__(self) -> int:
        return self._open.n_images

    @overload
    def __getitem__(self, image: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, image: slice) -> list[np.ndarray]: ...
    def __getitem__(self, image: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(image, slice):
            return [self[i] for i in range(*image.indices(len(self)))]
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        data = self._open.picture(image)
        try:
            return np.array(Image.open(BytesIO(data)).convert("RGB"))
        except OSError as error:
            raise TideError(
                f"{self._open.folder}: the picture of image {image} is damaged; make the index again"
            ) from error


def pictures(index: Index) -> Pictures:
    """All pictures, by their images' numbers.

    ``index`` is that of the run.
    """
    return Pictures(index)


def batches(index: Index, size: int) -> Iterator[Tensor]:
    """The pictures in batches of at most ``size``: ``[B, 3, H, W]`` float32 in [-1, 1]."""
    found = Pictures(index)
    for first in range(0, len(found), size):
        batch = torch.from_numpy(np.stack(found[first : first + size])).permute(0, 3, 1, 2)
        yield batch.float() / 127.5 - 1


def heat(index: Index) -> Callable[[int, int], np.ndarray]:
    """The function that gives a latent's map ``[h, w]`` float32 over an image: where it fires, on average over the
    timesteps, its highest place the latent's peak in that image.

    Of the images that a latent's maps are kept of (the strongest, and those drawn at random) it is that map. Of others
    it is gathered from the strongest latents of each place: 0 where there are :data:`~tide.index.layout.PLACE`
    stronger ones. Of a clip the maps of the frames that are shown, side by side as in its picture.

    ``index`` stays open meanwhile.
    """

    def of(latent: int, image: int) -> np.ndarray:
        index.check_latent(latent)
        return side_by_side(found(latent, image))

    def side_by_side(maps: np.ndarray) -> np.ndarray:
        return np.concatenate(maps[clips["map"]], axis=1) if (clips := index.facts.get("frames")) else maps

    def found(latent: int, image: int) -> np.ndarray:
        for kind in ("top", "drawn"):
            at = np.flatnonzero(index.rows(f"{kind}_images")[latent] == image)
            if len(at):
                kept = index.rows(f"{kind}_maps")[latent][at[0]]
                return _up_to(kept, float(index.rows(f"{kind}_values")[latent][at[0]]))
        place = index.place(image)
        heights = np.where(place.latents == latent, place.heights.astype(np.float32), 0).sum(-1).mean(0)
        images, values = index.firing(latent)
        return _up_to(heights.reshape(index.facts["map"]), float(_finite(values[images == image]).sum()))

    return of


def _finite(values: np.ndarray) -> np.ndarray:
    """Peaks as float32, of which half precision made 0 or infinity of some: positive and finite."""
    return values.astype(np.float32).clip(_LEAST, _MOST)


def _up_to(values: np.ndarray, peak: float) -> np.ndarray:
    """A map whose highest place is ``peak``."""
    highest = float(values.max())
    return values.astype(np.float32) * (peak / highest if highest > 0 else 0.0)


def concept_names(index: Index, *, at: str | None = None) -> dict[int, Entry]:
    """The labels by masks as names, by ``concepts`` at the time ``at`` (default: now).

    A label's own AUROC is of the tokens that chose it, so it is no score of the name. Masks choose on the first images
    alone if there are many (:func:`~tide.interpretation.atlas_reading.most_labelled`): the score is of the images
    after those, the AUROC of the latent's peaks for whether the caption holds the concept as whole words. A name has
    no score where fewer than :data:`~tide.interpretation.image_scores.FEWEST` of them hold it or do not, and none has
    one if every image was used to choose.

    Raises :class:`~tide.errors.TideError` for an index whose images have no masks.
    """
    if index.facts["labels"] != "masks":
        raise TideError(
            f"{index.run} has no labels by masks, only rendered scenes have; find names by captions instead"
        )
    at = now() if at is None else at
    said = index.query("SELECT latent, concept FROM latents WHERE concept IS NOT NULL ORDER BY latent")
    of = {row["latent"]: row["concept"] for row in said}
    scores = _held_out(index, of)
    return {latent: Entry(latent, "concepts", at, name, score=scores.get(latent)) for latent, name in of.items()}


def _held_out(index: Index, of: dict[int, str]) -> dict[int, Score]:
    """The scores of concepts by latent, as far as there are any."""
    first = min(index.n_images, most_labelled(index.n_latents, index.facts["n_tokens"]))
    texts = [folded(text) for text in captions(index)[first:]]
    concepts = sorted(set(of.values()))
    shows = torch.tensor([[holds(text, folded(each)) for each in concepts] for text in texts], dtype=torch.bool)
    shows = shows.view(len(texts), len(concepts))
    enough = torch.minimum(shows.sum(0), (~shows).sum(0)) >= FEWEST
    place = {each: i for i, each in enumerate(concepts)}
    scored = [latent for latent, concept in of.items() if enough[place[concept]]]
    found: dict[int, Score] = {}
    for latents, columns in peaks(index, scored):
        areas = auroc(columns[first:], shows)
        for latent, row in zip(latents, areas.tolist(), strict=True):
            found[latent] = Score(row[place[of[latent]]], len(texts))
    return found

"""What an index gathers beside an atlas while images are read, and the state that an interrupted reading leaves."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.errors import TideError
from tide.files import read_tensors, replace_file, tensors_writer
from tide.files.rows import GrowingRows, writing
from tide.images.identity import Sample
from tide.images.words import folded, words_of
from tide.index.layout import DRAWN, PICTURE, PICTURES, PLACE, SKETCH, SMALL, TOP
from tide.interpretation.gathered import Gathered, Ranked
from tide.interpretation.monosemanticity import Monosemanticity
from tide.pictures import resized
from tide.sae.model import TIDE

STATE = "state.safetensors"
#: The tensor of the state that is no sum: JSON as bytes, so that the state is one file, and whole or not there.
STATE_FACTS = "facts"
#: Numbers that stand for a caption: its words, hashed.
CAPTION = 128
#: The largest number of half precision.
HIGHEST = 65504.0
JPEG_QUALITY, SMALL_QUALITY = 88, 97


class IndexGathered(Gathered):
    """Sums over the images read so far, and files in ``folder`` that grow with them.

    Beside what an atlas has: images drawn at random from those on which a latent fires, its mean map, a sketch of its
    maps on all images, its peak in every image, the strongest latents of every place at every timestep, thumbnails and
    pictures.

    Args:
        folder: for the growing files; what an earlier reading left there is continued.
        asked: what is read; another reading's state is not continued.
        labelled_rows: of latents to keep in full for labels, the first of all tokens.
        samples_before: what the first images of the data are; the state of other images is not continued.
    """

    def __init__(
        self,
        model: TIDE,
        timesteps: Tensor,
        grid: tuple[int, ...],
        folder: Path,
        asked: Any,
        labelled_rows: int,
        samples_before: Callable[[int], Sequence[Sample]],
    ) -> None:
        super().__init__(model, timesteps, grid, TOP, self._keep_labelled, None)
        n, cells = model.n_latents, prod(self.map_size)
        self.folder, self.asked, self.cells, self.labelled_rows = folder, asked, cells, labelled_rows
        self.drawn = Ranked(n, DRAWN, cells)
        self.mean_map = torch.zeros(n, cells)
        self.sketch = torch.zeros(n, SKETCH)
        self.scores = Monosemanticity(n, CAPTION)
        self.captions: list[str] = []
        self.counts: list[int] = []
        self.offsets: list[int] = [0]
        self.codes: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.files: dict[str, GrowingRows] = {}
        if not self._restored(samples_before):
            self._open({})

    def _open(self, lengths: Mapping[str, int]) -> None:
        """Opens the growing files with so many rows of an earlier reading."""
        place = (len(self.timesteps), self.cells, PLACE)
        kinds: dict[str, tuple[tuple[int, ...], str]] = {
            "codes": (place, "i4"),
            "heights": (place, "f2"),
            "latents": ((), "i4"),
            "peaks": ((), "f4"),
            "labelled": ((self.model.n_latents,), "f4"),
        }
        for name, (row, kind) in kinds.items():
            path = self.folder / f"{name}.safetensors"
            self.files[name] = GrowingRows(path, name, row, kind, lengths.get(name, 0))
        path = self.folder / PICTURES
        with writing(path):
            self.pictures = path.open("r+b" if lengths else "w+b")
            self.pictures.truncate(self.offsets[-1])
            self.pictures.seek(0, os.SEEK_END)

    # -- one batch -------------------------------------------------------------------------------------------

    def add_images(
        self, x: Tensor, conditioning: Tensor | None, images: Sequence[np.ndarray], captions: Sequence[str]
    ) -> None:
        """Activations as :meth:`add` takes them, of ``images`` uint8 ``[H, W, 3]`` with their captions; of clips the
        frames that are shown, ``[F, H, W, 3]``."""
        self.captions += captions
        first = self.n_images
        self.add(x, conditioning)
        assert self.n_images == first + len(images)
        for image in images:
            data = encoded(shrunk(image, PICTURE))
            with writing(self.folder / PICTURES):
                self.pictures.write(data)
            self.offsets.append(self.offsets[-1] + len(data))

    def _keep_labelled(self, latents: Tensor) -> None:
        file = self.files["labelled"]
        if file.n < self.labelled_rows:
            file.append(latents.flatten(0, 1)[: self.labelled_rows - file.n].cpu().numpy())

    def see(self, step: int, latents: Tensor, first: int) -> None:
        found = latents.topk(min(PLACE, latents.shape[-1]), dim=-1)
        self.codes.setdefault(step, []).append((found.values.cpu(), found.indices.int().cpu()))

    def rank(self, peaks: Tensor, maps: Tensor) -> None:
        super().rank(peaks, maps)
        first, n = self.n_images, len(peaks)
        self.drawn.merge(torch.where(peaks.T > 0, lots(self.model.n_latents, first, n), 0.0), peaks.T, first, maps)
        self.mean_map += maps.sum(0).T
        self.sketch += maps.flatten(0, 1).T @ signs(first, n, self.cells)
        self.scores.update(peaks, torch.stack([embedded(each) for each in self.captions[first : first + n]]))
        image, latent = (peaks > 0).nonzero(as_tuple=True)
        self.files["latents"].append(latent.numpy())
        self.files["peaks"].append(peaks[image, latent].numpy())
        self.counts += torch.bincount(image, minlength=n).tolist()
        self._write_codes(n)

    def _write_codes(self, n: int) -> None:
        """The strongest latents of each place of the last ``n`` images, ``[n, timesteps, cells, PLACE]``."""
        values, latents = (
            torch.stack([torch.cat([part[which] for part in self.codes[step]], 1) for step in sorted(self.codes)], 1)
            for which in (0, 1)
        )
        self.codes.clear()
        if self.pooling is not None:
            values, latents = _pooled(values, latents, self.pooling)
        short = PLACE - values.shape[-1]
        values = torch.nn.functional.pad(values, (0, short))
        latents = torch.nn.functional.pad(latents, (0, short)).masked_fill(values <= 0, -1)
        self.files["heights"].append(values.clamp(max=HIGHEST).numpy())
        self.files["codes"].append(latents.numpy())

    # -- the state of an interrupted reading -------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """Everything in memory that a resumed reading needs, as the very tensors that it is summed in."""
        found = {"fired": self.fired, "total": self.total, "mean_map": self.mean_map, "sketch": self.sketch}
        if self.frames is not None:
            found |= {"frames.fired": self.frames.fired, "frames.total": self.frames.total}
        for name, ranked in (("top", self.top), ("drawn", self.drawn)):
            found |= {f"{name}.{part}": value for part, value in vars(ranked).items()}
        return found | {f"scores.{k}": v for k, v in vars(self.scores).items() if isinstance(v, Tensor)}

    def save(self, samples: Sequence[Sample]) -> None:
        """Writes the state beside the files, which hold everything until then. ``samples`` are the images so far."""
        for file in self.files.values():
            file.flush()
        with writing(self.folder / PICTURES):
            self.pictures.flush()
            os.fsync(self.pictures.fileno())
        tensors = self._tensors()
        facts = {
            "asked": self.asked,
            "samples": [list(sample) for sample in samples],
            "captions": self.captions,
            "counts": self.counts,
            "offsets": self.offsets,
            "lengths": {name: file.n for name, file in self.files.items()},
            "digest": _digest(tensors),
        }
        said = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
        replace_file(self.folder / STATE, tensors_writer({**tensors, STATE_FACTS: said}))

    def _restored(self, samples_before: Callable[[int], Sequence[Sample]]) -> bool:
        """Takes up the state of an earlier reading of the same and opens its files, if all of that is there."""
        path = self.folder / STATE
        if not path.exists():
            return False
        try:
            saved = read_tensors(path, "the unfinished index")
            facts = json.loads(bytes(saved.pop(STATE_FACTS).numpy()))
        except (TideError, KeyError, ValueError, RecursionError):
            return False  # damaged: all is read afresh
        # Both are of this program's own writing from here on: the digest says so.
        if facts["asked"] != json.loads(json.dumps(self.asked)) or facts["digest"] != _digest(saved):
            return False
        samples, captions, offsets = facts["samples"], facts["captions"], facts["offsets"]
        if samples != [list(sample) for sample in samples_before(len(samples))[: len(samples)]]:
            return False
        fresh, self.offsets = self.offsets, offsets
        try:
            if (self.folder / PICTURES).stat().st_size < offsets[-1]:
                raise TideError(f"{self.folder / PICTURES} is cut short; make the index again")
            self._open(facts["lengths"])
        except (TideError, OSError):
            for file in self.files.values():
                file.abandon()
            self.offsets = fresh
            return False
        for name, value in self._tensors().items():
            value.copy_(saved[name])
        self.n_images = self.scores.n = len(samples)
        self.captions, self.counts = captions, facts["counts"]
        return True

    def close(self) -> None:
        with writing(self.folder / PICTURES):
            self.pictures.close()
        for file in self.files.values():
            file.close()

    def abandon(self) -> None:
        """Closes the files as they are. What a later reading finds behind its state it cuts off, so nothing may be
        written to them after this."""
        with suppress(OSError):
            self.pictures.close()
        for file in self.files.values():
            file.abandon()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {list(value.shape)} {value.dtype}".encode())
        content: Any = value.contiguous().numpy()
        digest.update(content)
    return digest.hexdigest()


def lots(n_latents: int, first: int, n: int) -> Tensor:
    """A number in (0, 1] for each latent and each of ``n`` images from ``first`` on, ``[n_latents, n]``, always the
    same: the images with the highest are a random sample, whatever comes after them."""
    latent = np.arange(n_latents, dtype=np.uint64)[:, None]
    image = np.arange(first, first + n, dtype=np.uint64)[None]
    with np.errstate(over="ignore"):
        x = latent * np.uint64(0x9E3779B97F4A7C15) + (image + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        x = (x ^ (x >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((x >> np.uint64(40)).astype(np.float32) + 1) / 2**24)


def signs(first: int, n: int, cells: int) -> Tensor:
    """``[n * cells, SKETCH]`` of 1 and -1, which depend on the number of the image and the place alone, so that the
    sketches of several autoencoders on the same images can be compared."""
    rows = [
        torch.randint(0, 2, (cells, SKETCH), generator=torch.Generator().manual_seed(image), dtype=torch.int8)
        for image in range(first, first + n)
    ]
    return torch.cat(rows).float() * 2 - 1


def embedded(caption: str) -> Tensor:
    """A caption as a vector ``[CAPTION]``: the sum of a vector of 1 and -1 for each of its words, which is the same for
    the same word."""
    total = torch.zeros(CAPTION)
    for word in sorted(words_of(folded(caption))):
        total += _of_word(word)
    return total if total.any() else torch.ones(CAPTION)


@lru_cache(maxsize=2**14)
def _of_word(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "little")
    return torch.randint(0, 2, (CAPTION,), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]`` or ``[F, H, W, 3]``, its longer side at most ``side`` pixels."""
    height, width = image.shape[-3:-1]
    factor = side / max(height, width)
    return image if factor >= 1 else resized(image, (max(1, round(width * factor)), max(1, round(height * factor))))


def encoded(image: np.ndarray) -> bytes:
    """``image`` as a JPEG; a clip's frames side by side."""
    buffer = BytesIO()
    # A small picture is enlarged on the page, where artefacts show.
    quality = SMALL_QUALITY if max(image.shape[-3:-1]) <= SMALL else JPEG_QUALITY
    Image.fromarray(np.concatenate(image, axis=1) if image.ndim == 4 else image).save(
        buffer, "JPEG", quality=quality, subsampling=0
    )
    return buffer.getvalue()


def _pooled(values: Tensor, latents: Tensor, pooling: Tensor) -> tuple[Tensor, Tensor]:
    """The strongest latents of each cell from those of its tokens: ``[n, timesteps, tokens, PLACE]`` to ``[n,
    timesteps, cells, PLACE]``; a token belongs to the cell that covers most of it."""
    cells, k = len(pooling), values.shape[-1]
    owner = pooling.argmax(0)
    share = 1 / torch.bincount(owner, minlength=cells).clamp(min=1).float()
    n, steps = values.shape[:2]
    pooled_values = torch.zeros(n, steps, cells, k)
    pooled_latents = torch.zeros(n, steps, cells, k, dtype=torch.int32)
    for i in range(n):
        for step in range(steps):
            n_latents = int(latents[i, step].max()) + 1
            keys = (owner[:, None] * n_latents + latents[i, step]).flatten()
            weights = (values[i, step] * share[owner][:, None]).flatten()
            distinct, place = keys.unique(return_inverse=True)
            sums = torch.zeros(len(distinct)).index_add_(0, place, weights)
            order = sums.argsort(descending=True, stable=True)
            order = order[(distinct[order] // n_latents).argsort(stable=True)]
            cell = distinct[order] // n_latents
            rank = torch.arange(len(cell)) - torch.searchsorted(cell, cell)
            kept = rank < k
            pooled_values[i, step, cell[kept], rank[kept]] = sums[order[kept]]
            pooled_latents[i, step, cell[kept], rank[kept]] = (distinct[order[kept]] % n_latents).int()
    return pooled_values, pooled_latents

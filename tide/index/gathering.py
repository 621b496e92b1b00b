"""What an index gathers beside an atlas while images are read, and the state that an interrupted reading leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tide.errors import TideError
from tide.files import read_json, read_tensors, replace_files, tensors_writer
from tide.files.rows import GrowingRows
from tide.files.writing import json_writer
from tide.images.words import folded, words_of
from tide.index.layout import DRAWN, PICTURE, PICTURES, PLACE, SKETCH, TOP
from tide.interpretation.gathered import Gathered, Ranked
from tide.interpretation.monosemanticity import Monosemanticity
from tide.pictures import resized
from tide.sae.model import TIDE

STATE, STATE_FACTS = "state.safetensors", "state.json"
#: Numbers that stand for a caption: its words, hashed.
CAPTION = 128
JPEG_QUALITY, SMALL_QUALITY, SMALL = 88, 97, 128


class IndexGathered(Gathered):
    """Sums over the images read so far, and files in ``folder`` that grow with them.

    Beside what an atlas has: images drawn at random from those on which a latent fires, its mean map, a sketch of its
    maps on all images, its peak in every image, the strongest latents of every place at every timestep, thumbnails and
    pictures.

    Args:
        folder: for the growing files; what an earlier reading left there is continued.
        asked: what is read; another reading's state is not continued.
        labelled_rows: of latents to keep in full for labels, the first of all tokens.
    """

    def __init__(
        self, model: TIDE, timesteps: Tensor, grid: tuple[int, int], folder: Path, asked: Any, labelled_rows: int
    ) -> None:
        super().__init__(model, timesteps, grid, TOP, self._keep_labelled, None)
        n, cells = model.n_latents, self.map_size[0] * self.map_size[1]
        self.folder, self.asked, self.cells, self.labelled_rows = folder, asked, cells, labelled_rows
        self.drawn = Ranked(n, DRAWN, cells)
        self.mean_map = torch.zeros(n, cells)
        self.sketch = torch.zeros(n, SKETCH)
        self.scores = Monosemanticity(n, CAPTION)
        self.captions: list[str] = []
        self.counts: list[int] = []
        self.offsets: list[int] = [0]
        self.codes: dict[int, list[tuple[Tensor, Tensor]]] = {}
        lengths = self._restored()
        row = (len(timesteps), cells, PLACE)
        self.files = {
            "codes": self._grown("codes", row, "i4", lengths),
            "heights": self._grown("heights", row, "f2", lengths),
            "latents": self._grown("latents", (), "i4", lengths),
            "peaks": self._grown("peaks", (), "f2", lengths),
            "labelled": self._grown("labelled", (n,), "f4", lengths),
        }
        self.pictures = (folder / PICTURES).open("r+b" if self.n_images else "w+b")
        self.pictures.truncate(self.offsets[-1])
        self.pictures.seek(0, os.SEEK_END)

    def _grown(self, name: str, row: tuple[int, ...], kind: str, lengths: dict[str, int]) -> GrowingRows:
        return GrowingRows(self.folder / f"{name}.safetensors", name, row, kind, lengths.get(name, 0))

    # -- one batch -------------------------------------------------------------------------------------------

    def add_images(
        self, x: Tensor, conditioning: Tensor | None, images: Sequence[np.ndarray], captions: Sequence[str]
    ) -> None:
        """Activations as :meth:`add` takes them, of ``images`` uint8 ``[H, W, 3]`` with their captions."""
        self.captions += captions
        first = self.n_images
        self.add(x, conditioning)
        assert self.n_images == first + len(images)
        for image in images:
            data = encoded(shrunk(image, PICTURE))
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
        self.files["heights"].append(values.numpy())
        self.files["codes"].append(latents.numpy())

    # -- the state of an interrupted reading -------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        """Everything in memory that a resumed reading needs, as the very tensors that it is summed in."""
        found = {"fired": self.fired, "total": self.total, "mean_map": self.mean_map, "sketch": self.sketch}
        for name, ranked in (("top", self.top), ("drawn", self.drawn)):
            found |= {f"{name}.{part}": value for part, value in vars(ranked).items()}
        return found | {f"scores.{k}": v for k, v in vars(self.scores).items() if isinstance(v, Tensor)}

    def save(self) -> None:
        """Writes the state beside the files, which hold everything until then."""
        for file in self.files.values():
            file.flush()
        self.pictures.flush()
        facts = {
            "asked": self.asked,
            "n_images": self.n_images,
            "captions": self.captions,
            "counts": self.counts,
            "offsets": self.offsets,
            "lengths": {name: file.n for name, file in self.files.items()},
        }
        replace_files(
            {self.folder / STATE: tensors_writer(self._tensors()), self.folder / STATE_FACTS: json_writer(facts)}
        )

    def _restored(self) -> dict[str, int]:
        """Takes up the state of an earlier reading of the same; the lengths of its files, empty without one."""
        path = self.folder / STATE_FACTS
        if not path.exists():
            return {}
        try:
            facts = read_json(path)
            saved = read_tensors(self.folder / STATE, "the unfinished index")
            own = self._tensors()
            if facts["asked"] != json.loads(json.dumps(self.asked)) or saved.keys() != own.keys():
                return {}
            if any(saved[name].shape != value.shape for name, value in own.items()):
                return {}
            lengths = {name: int(n) for name, n in facts["lengths"].items()}
        except (TideError, KeyError, TypeError, AttributeError):
            return {}  # half-written: it is read afresh
        for name, value in own.items():
            value.copy_(saved[name])
        self.n_images = self.scores.n = facts["n_images"]
        self.captions, self.counts, self.offsets = facts["captions"], facts["counts"], facts["offsets"]
        return lengths

    def close(self) -> None:
        self.pictures.close()
        for file in self.files.values():
            file.close()


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
        seed = int.from_bytes(word.encode()[:7], "little") ^ (len(word) << 56)
        total += torch.randint(0, 2, (CAPTION,), generator=torch.Generator().manual_seed(seed % 2**63)).float() * 2 - 1
    return total if total.any() else torch.ones(CAPTION)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """``image`` uint8 ``[H, W, 3]``, its longer side at most ``side`` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    return image if factor >= 1 else resized(image, (max(1, round(width * factor)), max(1, round(height * factor))))


def encoded(image: np.ndarray) -> bytes:
    """``image`` as a JPEG."""
    buffer = BytesIO()
    # A small picture is enlarged on the page, where artefacts show.
    quality = SMALL_QUALITY if max(image.shape) <= SMALL else JPEG_QUALITY
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
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

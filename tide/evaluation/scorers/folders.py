"""Scores of a folder of pictures beside another one, whose pictures are paired by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tide.checks import check_count
from tide.errors import TideError
from tide.evaluation.scorers.set_prompts import prompts_of
from tide.evaluation.scorers.sets import Batch, SetScorers, score_sets
from tide.images.folder import Folder
from tide.images.tensors import to_tensor
from tide.messages import counted, one_line


def score_folders(
    before: str | Path,
    after: str | Path,
    scorers: SetScorers,
    *,
    prompts: str | Path | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> dict[str, Any]:
    """:func:`~tide.evaluation.scorers.score_sets` of the pictures of two folders, in the size that they have.

    Pictures of one name (the path below the folder) are pairs; the others count for FID, CMMD and prompts alone. At
    most a batch of each folder is in memory; a batch ends where the size changes.

    Args:
        before, after: the folders, as :func:`tide.open_source` reads them.
        scorers: what the pictures are scored by.
        prompts: a file of prompts (:func:`~tide.evaluation.scorers.set_prompts.prompts_of`), for ``scorers.clip``.
        batch_size: pictures of each folder that are scored at once.
        progress: shows a bar on stderr if that is a terminal.

    Raises:
        TideError: a folder is missing or empty; LPIPS is asked and no name is in both, or FID and a folder holds fewer
            than 2 pictures; prompts do not fit; and, on reaching it, for a picture that is unreadable or has another
            size than that of its name in the other folder.
    """
    check_count("batch_size", batch_size)
    scorers.used()
    first, second = (_Pictures.of(path, prompts) for path in (before, after))
    shared = set(first.places) & set(second.places)
    names = [name for name in first.places if name in shared]
    _check(scorers, first, second, len(names))
    rest = [[name for name in each.places if name not in shared] for each in (first, second)]
    total = len(names) + len(rest[0]) + len(rest[1])
    with tqdm(total=total, unit="image", disable=None if progress else True) as bar:
        return score_sets(
            ((a, b) for a, b in _batches(names, batch_size, bar, first, second)),
            (batch for (batch,) in _batches(rest[0], batch_size, bar, first)),
            (batch for (batch,) in _batches(rest[1], batch_size, bar, second)),
            scorers=scorers,
        )


@dataclass(frozen=True)
class _Pictures:
    """A folder, the number of each of its pictures by name, and their prompts by name, if they are known."""

    folder: Folder
    places: Mapping[str, int]
    prompts: Mapping[str, str] | None

    @classmethod
    def of(cls, path: str | Path, prompts: str | Path | None) -> _Pictures:
        folder = Folder(Path(path), f"{str(path).rstrip('/')}/")
        texts = None if prompts is None else prompts_of(Path(prompts), folder.names, folder.shown)
        return cls(folder, {name: i for i, name in enumerate(folder.names)}, texts)

    def read(self, name: str) -> Tensor:
        """``[3, H, W]`` in [-1, 1]."""
        picture = self.folder.picture(self.places[name])
        return to_tensor(picture, (picture.height, picture.width), one_line(name, 100))

    def batch(self, names: Sequence[str], images: Sequence[Tensor]) -> Batch:
        texts = None if self.prompts is None else [self.prompts[name] for name in names]
        return Batch(torch.stack(list(images)), texts)


def _check(scorers: SetScorers, first: _Pictures, second: _Pictures, n_pairs: int) -> None:
    if scorers.lpips is not None and not n_pairs:
        raise TideError(
            f"{first.folder.shown} and {second.folder.shown} have no file name in common, and LPIPS compares pairs; "
            "name the pictures alike"
        )
    for each in (first, second):
        if len(each.folder) < 2 and (scorers.inception is not None or scorers.judge is not None):
            raise TideError(f"{each.folder.shown} holds {counted(len(each.folder), 'picture')}; FID needs at least 2")


def _batches(names: Sequence[str], batch_size: int, bar: tqdm, *sides: _Pictures) -> Iterator[tuple[Batch, ...]]:
    """A batch of each of ``sides`` at a time, all of the same names and the same size; ``bar`` is moved on once they
    are scored."""
    gathered: list[tuple[str, list[Tensor]]] = []

    def batches() -> tuple[Batch, ...]:
        of_names = [name for name, _ in gathered]
        return tuple(side.batch(of_names, [read[i] for _, read in gathered]) for i, side in enumerate(sides))

    for name in names:
        read = [side.read(name) for side in sides]
        _check_sizes(name, read, sides)
        if gathered and (len(gathered) == batch_size or gathered[0][1][0].shape != read[0].shape):
            yield batches()
            bar.update(len(gathered))
            gathered.clear()
        gathered.append((name, read))
    if gathered:
        yield batches()
        bar.update(len(gathered))


def _check_sizes(name: str, read: Sequence[Tensor], sides: Sequence[_Pictures]) -> None:
    if any(image.shape != read[0].shape for image in read):
        sizes = " and ".join(
            f"{image.shape[2]} x {image.shape[1]} in {side.folder.shown}"
            for image, side in zip(read, sides, strict=True)
        )
        raise TideError(f"{one_line(name, 100)} is {sizes}; give both in one size")

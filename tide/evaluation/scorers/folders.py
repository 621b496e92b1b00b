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
from tide.evaluation.scorers.set_prompts import LISTS, is_list, prompts_of
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
        before, after: the folders, read as :func:`tide.images.image_folder` reads them.
        scorers: what the pictures are scored by.
        prompts: a file of prompts (:func:`~tide.evaluation.scorers.set_prompts.prompts_of`), for ``scorers.clip``.
        batch_size: pictures of each folder that are scored at once.
        progress: shows a bar on stderr if that is a terminal.

    Raises:
        TideError: a folder is missing or empty; LPIPS is asked and no name is in both, or FID and a folder holds fewer
            than 2 pictures; prompts do not fit; and, on reaching it, for a picture that is unreadable or has another
            size than that of its name in the other folder.
    """
    return FolderPair.opened(before, after, prompts).score(scorers, batch_size=batch_size, progress=progress)


@dataclass(frozen=True)
class FolderPair:
    """Two folders, opened; no picture is decoded before they are scored. ``shared``: the names that both have.

    Attributes:
        before, after: the pictures of each.
        shared: names of pictures that both have.
    """

    before: Pictures
    after: Pictures
    shared: Sequence[str]

    @classmethod
    def opened(cls, before: str | Path, after: str | Path, prompts: str | Path | None = None) -> FolderPair:
        """Opens the folders ``before`` and ``after``, with the captions of the list or text ``prompts``. Raises
        :class:`~tide.errors.TideError` for folders that hold no pictures, and where ``prompts`` cannot fit both.
        """
        first, second = (Pictures.of(path, prompts) for path in (before, after))
        shared = [name for name in first.places if name in second.places]
        if prompts is not None and shared and not is_list(Path(prompts)) and [*first.places] != [*second.places]:
            apart = next(name for name in (*first.places, *second.places) if name not in shared)
            raise TideError(
                f"{first.shown} and {second.shown} share names and differ in others, such as {one_line(apart, 100)}, "
                f"so a text of prompts cannot fit both; give a list by name ({', '.join(LISTS)})"
            )
        return cls(first, second, shared)

    def check(self, *, fid: bool, lpips: bool) -> None:
        """Raises :class:`~tide.errors.TideError` unless the folders have what these measures need."""
        if lpips and not self.shared:
            raise TideError(
                f"{self.before.shown} and {self.after.shown} have no file name in common, and LPIPS compares pairs; "
                "name the pictures alike"
            )
        for each in (self.before, self.after):
            if fid and len(each.places) < 2:
                raise TideError(f"{each.shown} holds {counted(len(each.places), 'picture')} and FID needs 2; add some")

    def score(self, scorers: SetScorers, *, batch_size: int = 16, progress: bool = False) -> dict[str, Any]:
        """As :func:`score_folders`."""
        check_count("batch_size", batch_size)
        scorers.used()
        self.check(fid=not (scorers.inception is None and scorers.judge is None), lpips=scorers.lpips is not None)
        paired = set(self.shared)
        first, second = ([name for name in each.places if name not in paired] for each in (self.before, self.after))
        total = len(self.shared) + len(first) + len(second)
        with tqdm(total=total, unit="image", disable=None if progress else True) as bar:
            return score_sets(
                ((a, b) for a, b in _batches(self.shared, batch_size, bar, self.before, self.after)),
                (batch for (batch,) in _batches(first, batch_size, bar, self.before)),
                (batch for (batch,) in _batches(second, batch_size, bar, self.after)),
                scorers=scorers,
            )


@dataclass(frozen=True)
class Pictures:
    """A folder, the number of each of its pictures by name, and their prompts by name, if they are known."""

    folder: Folder
    places: Mapping[str, int]
    prompts: Mapping[str, str] | None

    @classmethod
    def of(cls, path: str | Path, prompts: str | Path | None) -> Pictures:
        folder = Folder(Path(path), f"{str(path).rstrip('/')}/")
        texts = None if prompts is None else prompts_of(Path(prompts), folder.names, folder.shown)
        return cls(folder, {name: i for i, name in enumerate(folder.names)}, texts)

    @property
    def shown(self) -> str:
        return self.folder.shown

    def read(self, name: str) -> Tensor:
        """``[3, H, W]`` in [-1, 1]."""
        picture = self.folder.picture(self.places[name])
        return to_tensor(picture, (picture.height, picture.width), one_line(name, 100))

    def batch(self, names: Sequence[str], images: Sequence[Tensor]) -> Batch:
        texts = None if self.prompts is None else [self.prompts[name] for name in names]
        return Batch(torch.stack(list(images)), texts)


def _batches(names: Sequence[str], batch_size: int, bar: tqdm, *sides: Pictures) -> Iterator[tuple[Batch, ...]]:
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


def _check_sizes(name: str, read: Sequence[Tensor], sides: Sequence[Pictures]) -> None:
    if any(image.shape != read[0].shape for image in read):
        sizes = " and ".join(
            f"{image.shape[2]} x {image.shape[1]} in {side.shown}" for image, side in zip(read, sides, strict=True)
        )
        raise TideError(f"{one_line(name, 100)} is {sizes}; give both in one size")

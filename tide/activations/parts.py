"""Stores that several processes collected, each its own part of the images, without a word between them.

Part 3 of 64 is an ordinary store in the folder ``part-00003-of-00064``. The folders are the index: their names say how
many there must be, so no process writes a list that the others could overwrite or would have to wait for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tide.activations.manifest import MANIFEST, Manifest, manifest_at
from tide.errors import TideError
from tide.files.remote import Place, folders_in
from tide.provenance import check_unchanged
from tide.ranks import launched

_NAME = re.compile(r"part-([0-9]{5})-of-([0-9]{5})")
#: The most parts: what their names can say.
MOST = 99_999
#: The entry of a manifest's ``info`` that tells a part from the whole.
PART = "part"
#: Fields of manifests that are equal in all parts that hold activations.
_KIND = ("d_model", "dtype", "paired", "d_conditioning")
#: Manifests that are read at a time: there may be a thousand, on a disk that is far away.
_READERS = 16
#: Parts that a message lists.
_LISTED = 8


@dataclass(frozen=True)
class Part:
    """Part ``index`` of ``of``, counted from 0. Raises :class:`~tide.errors.TideError` if there is no such part."""

    index: int
    of: int

    def __post_init__(self) -> None:
        if self.of < 1:
            raise TideError(f"{self.of} parts are none; give R/W with W of at least 1, such as 0/64")
        if self.of > MOST:
            raise TideError(f"{self.of} parts are too many; give at most {MOST}")
        if not 0 <= self.index < self.of:
            raise TideError(f"part {self.index} of {self.of} does not exist; they are 0 to {self.of - 1}")

    def __str__(self) -> str:
        return f"part {self.index} of {self.of}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"part-{self.index:05d}-of-{self.of:05d}"

    def share(self, n_images: int, per_pass: int) -> tuple[int, int]:
        """The numbers of its first image and of the one after its last: whole passes of ``per_pass`` images, as many as
        any other part has or one more, so that passes are cut where one process would cut them."""
        n_passes = -(-n_images // per_pass)
        first, end = (per_pass * (n_passes * index // self.of) for index in (self.index, self.index + 1))
        return min(first, n_images), min(end, n_images)

    def info(self, n_images: int, listing: str) -> dict[str, Any]:
        """What its manifest records under :data:`PART`."""
        return {"index": self.index, "of": self.of, "images": n_images, "listing": listing}


def part_of_environment(environment: Mapping[str, str] = os.environ) -> Part | None:
    """The part of this process by what its launcher says: torchrun, then a Slurm array. None for a process alone.

    Raises :class:`~tide.errors.TideError` for an array whose tasks are not numbered in equal steps.
    """
    if (rank := launched(environment)) is not None:
        return Part(rank.number, rank.count)
    task, first, count, step = (
        _number(environment.get(f"SLURM_ARRAY_TASK_{name}", "")) for name in ("ID", "MIN", "COUNT", "STEP")
    )
    if task is None or first is None or count is None or count < 2:
        return None
    index, off = divmod(task - first, step or 1)
    if off or not 0 <= index < count:
        raise TideError(f"task {task} of the Slurm array is not one of {count} in equal steps; give --part R/W")
    return Part(index, count)


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


@contextmanager
def named(part: Part | None) -> Iterator[None]:
    """Errors in the block name the part: many processes may write into one log."""
    try:
        yield
    except (TideError, OSError) as error:
        if part is None:
            raise
        raise TideError(f"{part}: {error}") from error


def found_parts(folder: Place) -> dict[Part, Place]:
    """The folders of parts in ``folder``, in order; none in the folder of a whole store.

    Raises :class:`~tide.errors.TideError` if they are not all parts of the same number.
    """
    found = ((_NAME.fullmatch(name), each) for name, each in folders_in(folder).items())
    parts = {Part(int(name[1]), int(name[2])): each for name, each in found if name and int(name[1]) < int(name[2])}
    if len(numbers := sorted({part.of for part in parts})) > 1:
        raise TideError(
            f"{folder} holds parts of {numbers[0]} and parts of {numbers[1]}; remove those that do not belong there"
        )
    return dict(sorted(parts.items(), key=lambda item: item[0].index))


def check_place(folder: Place, part: Part | None, info: dict[str, Any]) -> None:
    """Raises :class:`~tide.errors.TideError` if ``folder`` holds anything that ``part`` of a store of ``info``, or a
    whole one, cannot be collected into: a whole store, parts of another number, parts of other data or options."""
    others = found_parts(folder)
    if part is None:
        if others:
            raise TideError(f"{folder} holds {_parts(list(others))} of a store; give --part, or choose another folder")
        return
    if manifest_at(folder) is not None:
        raise TideError(f"{folder} already holds activations that one process collected; choose another folder")
    for other, path in others.items():
        if other.of != part.of:
            raise TideError(f"{folder} holds parts of {other.of}, not of {part.of}; give --part R/{other.of}")
        if other != part and (manifest := manifest_at(path)) is not None:
            _check_same(path, manifest["info"], folder / part.name, info)
            break  # the others were compared with it, or will be when they are read


def read_parts(folder: Place) -> Manifest | None:
    """One manifest of all parts in ``folder``, whose shards are named from there; None if there are no parts.

    Raises :class:`~tide.errors.TideError` for parts that are missing, unfinished, damaged or not of one collection.
    """
    parts = found_parts(folder)
    if not parts:
        return None
    if manifest_at(folder) is not None:
        raise TideError(f"{folder} holds a whole store and parts of one; remove what does not belong there")
    with ThreadPoolExecutor(_READERS) as readers:
        found = zip(parts, readers.map(manifest_at, parts.values()), strict=True)
        manifests = {part: manifest for part, manifest in found if manifest is not None}
    _check_whole(folder, next(iter(parts)).of, manifests)
    first = next(iter(manifests))
    for part, manifest in manifests.items():
        _check_part(folder, part, manifest)
        _check_same(parts[first], manifests[first]["info"], parts[part], manifest["info"])
    return _joined(folder, manifests)


def _check_whole(folder: Place, of: int, manifests: Mapping[Part, Manifest]) -> None:
    finished = {part for part, manifest in manifests.items() if manifest["complete"]}
    lacking = [part for part in (Part(i, of) for i in range(of)) if part not in finished]
    if lacking:
        what = f"{_parts(lacking)} {'is' if len(lacking) == 1 else 'are'} missing or unfinished"
        raise TideError(
            f"{folder} is not whole: {what}; run `tide collect --part {lacking[0].index}/{of} --resume` with the "
            f"options of the others{' for each' if len(lacking) > 1 else ''}"
        )


def _parts(parts: Sequence[Part]) -> str:
    """``part 3 of 64``, ``parts 3, 17 of 64``."""
    if len(parts) == 1:
        return str(parts[0])
    further = f" and {len(parts) - _LISTED} more" if len(parts) > _LISTED else ""
    return f"parts {', '.join(str(part.index) for part in parts[:_LISTED])}{further} of {parts[0].of}"


def _check_part(folder: Place, part: Part, manifest: Manifest) -> None:
    """Raises unless the manifest is that of the part that the folder's name says."""
    path, said = folder / part.name, manifest["info"].get(PART)
    if not isinstance(said, dict) or (said.get("index"), said.get("of")) != (part.index, part.of):
        raise TideError(f"{path} was not collected as {part}; give the folder its former name, or remove it")
    n_images, per_pass = said.get("images"), manifest["info"].get("batch_size")
    if not isinstance(n_images, int) or not isinstance(per_pass, int) or per_pass < 1:
        raise TideError(f"{path / MANIFEST} does not say which images are its own; the file is damaged, collect again")
    first, end = part.share(n_images, per_pass)
    for shard in manifest["shards"]:
        if not first <= shard.get("first_sample", -1) <= end - shard.get("samples", 0):
            raise TideError(f"{path / MANIFEST}: {shard['file']} holds images of another part; collect it again")


def _check_same(path: Place, before: dict[str, Any], other: Place, now: dict[str, Any]) -> None:
    """Raises unless both infos are of the same data, model and options; roundings may differ."""
    what = f"{other} is not of the same collection as {path}"
    check_unchanged(_common(before), _common(now), what, remedy="use the same options and data, or another folder")


def _common(info: dict[str, Any]) -> dict[str, Any]:
    """What all parts share."""
    part = info.get(PART)
    of_all = {name: part.get(name) for name in ("images", "listing")} if isinstance(part, dict) else {}
    return {**{name: value for name, value in info.items() if name not in (PART, "threads")}, **of_all}


def _joined(folder: Place, manifests: Mapping[Part, Manifest]) -> Manifest:
    filled = {part: manifest for part, manifest in manifests.items() if manifest["shards"]}
    first = next(iter((filled or manifests).values()))
    for part, manifest in filled.items():
        for name in _KIND:
            if manifest[name] != first[name]:  # type: ignore[literal-required]
                raise TideError(f"{folder / part.name} differs from the other parts in {name}; collect it again")
    shards = [
        {**shard, "file": f"{part.name}/{shard['file']}"} for part, each in filled.items() for shard in each["shards"]
    ]
    return {
        **first,
        "info": {name: value for name, value in first["info"].items() if name != PART},
        "rows": sum(manifest["rows"] for manifest in filled.values()),
        "next_sample": max((manifest["next_sample"] for manifest in filled.values()), default=0),
        "shards": shards,  # type: ignore[typeddict-item]
    }

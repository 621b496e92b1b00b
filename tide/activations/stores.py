"""Activation stores, one per block, written in one pass over the data; resumed, repaired and extended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

from tqdm import tqdm

from tide.activations.batch import ActivationBatch
from tide.activations.manifest import places
from tide.activations.source import Prompts, Source
from tide.activations.target import target_of
from tide.activations.writer import StoreWriter, check_disk, existing_parent
from tide.errors import TideError
from tide.files import lock_folder, new_folders
from tide.files.remote import Place
from tide.images.identity import what_changed

#: Shards that a collection is cut into, so that an interruption loses a twentieth at most.
SHARDS = 20
SMALLEST_SHARD = 2**20

#: ``activations(data, start, stop)``: those of the samples ``start`` to ``stop - 1`` of the data, a pass at a time.
Activations = Callable[[Any, int, int], Iterable[dict[int, ActivationBatch]]]


def write_stores(
    activations: Activations,
    folders: dict[int, Place],
    info: dict[str, Any],
    *,
    n: int,
    first: int = 0,
    data: Source | Prompts | None = None,
    expected: int = 0,
    quota: int | None = None,
    resume: bool = False,
    begun: Callable[[], None] = lambda: None,
    shared: bool = False,
    progress: bool = True,
) -> tuple[dict[int, int], int]:
    """Writes ``activations(data, start, stop)`` of the images ``first`` to ``n - 1`` to one store per block.

    All stores are locked before anything is written. When resuming, ``data`` must hold what the stores were collected
    from, and is read in their order as far as its own is free; damaged shards are collected again, and a store that is
    behind the others after a crash catches up.
    What is found in a resumed store is noted on stderr.

    Args:
        activations: yields block -> batch.
        folders: block -> the folder of its store.
        info: kept in the manifests (:class:`StoreWriter`); a store can be extended only if it names ``batch_size``, the
            images of a pass.
        n: the number of the image after the last.
        first: the number of the first image.
        data: what is collected from; recorded in the shards.
        expected: bytes that each store is going to take.
        quota: disk limit of each store in bytes.
        resume: resume or extend the stores that are there.
        begun: called once, as soon as there is a shard.
        shared: other processes write to the parent of several stores, so it is not locked.
        progress: show a bar at a terminal.

    Returns:
        The rows of each store, and the images in each.

    Raises:
        TideError: the folders hold stores of something else, or their disk does not suffice.
    """
    shard_bytes = min(256 * 2**20, max(SMALLEST_SHARD, expected // SHARDS))
    with ExitStack() as stack:
        stack.enter_context(new_folders(*(target_of(folder).local for folder in folders.values())))
        if len(folders) > 1 and not shared:
            stack.enter_context(lock_folder(target_of(next(iter(folders.values())).parent).local))
        writers = {
            block: stack.enter_context(
                StoreWriter(
                    folder,
                    info={**info, "block": block},
                    expected_bytes=expected,
                    quota=quota,
                    shard_bytes=shard_bytes,
                    resume=resume,
                    first_sample=first,
                )
            )
            for block, folder in folders.items()
        }
        _check_disks(writers.values(), expected)
        if data is not None:
            data = _continuing(data, writers.values())
        for writer in writers.values():
            _tell(writer, info)
            if data is not None:
                _check_data(writer, data)
            if writer.next_sample < n:
                writer.align(info.get("batch_size", 1))
        segments = list(_segments(writers, n))
        done = max(0, n - first - sum(stop - start for start, stop, _ in segments))
        with tqdm(total=n - first, initial=done, unit="image", disable=None if progress else True) as bar:
            _collect(activations, writers, data, segments, begun, bar)
    end = min(writer.next_sample for writer in writers.values())
    return {block: writer.rows for block, writer in writers.items()}, end - first


def _check_disks(writers: Iterable[StoreWriter], expected: int) -> None:
    """Raises unless what is still to come of all stores together fits their disks."""
    needed: dict[int, int] = {}
    for writer in writers:
        local = writer.target.local
        disk = existing_parent(local).stat().st_dev
        further = writer.target.needed(max(0, expected - writer.used), writer.shard_bytes)
        needed[disk] = needed.get(disk, 0) + further
        check_disk(needed[disk], local, "are expected")


def _tell(writer: StoreWriter, info: dict[str, Any]) -> None:
    """Says on stderr what was found in a store that is resumed."""
    threads = writer.manifest["info"].get("threads", info.get("threads"))
    notes = [f"{reason.split('; ')[0]}: its images are collected again" for reason in writer.damaged.values()]
    if writer.unrecorded:
        notes.append(f"{writer.path} does not record {', '.join(writer.unrecorded)}: taken to be the same")
    if threads != info.get("threads"):
        with_threads = f"{threads} {'thread' if threads == 1 else 'threads'}"
        notes.append(f"{writer.path} was collected with {with_threads}, not {info['threads']}: roundings can differ")
    if writer.manifest["shards"] and not writer.recorded:
        notes.append(f"{writer.path} does not record its images and captions: taken to be the same")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _continuing(data: Source | Prompts, writers: Collection[StoreWriter]) -> Source | Prompts:
    """The data, beginning with what the stores recorded: they may have been collected when there were fewer images, or
    in the order of an earlier version."""
    recorded = {place: sample for writer in writers for place, sample in writer.recorded.items()}
    n = max(writer.next_sample for writer in writers)
    return data.beginning_with(recorded, n) if recorded else data


def _check_data(writer: StoreWriter, data: Source | Prompts) -> None:
    """Raises unless the data begin with what the store was collected from."""
    if not writer.recorded:
        return
    now = data.samples_before(writer.next_sample)
    changed = what_changed(writer.recorded, now)
    if changed is None and len(now) < writer.next_sample and not data.limited:
        last = writer.recorded.get(len(now))
        changed = f"{last.name if last else f'image {len(now)}'} is gone"
    if changed is not None:
        raise TideError(
            f"{writer.path} was collected from other data: {changed}; restore the data, or collect into another folder"
        )


def _collect(
    activations: Activations,
    writers: dict[int, StoreWriter],
    data: Source | Prompts | None,
    segments: list[tuple[int, int, list[int]]],
    begun: Callable[[], None],
    bar: tqdm,
) -> None:
    is_first = True
    for start, stop, takers in segments:
        for batches in activations(data, start, stop):
            first, end = _ends(batches)
            samples = () if data is None else data.samples_between(first, end)
            for block in takers:
                writers[block].add(batches[block], samples)
            if is_first and any(writer.n_written for writer in writers.values()):
                begun()
                is_first = False
            bar.update(end - first)
    _check_mended(writers.values())
    for writer in writers.values():
        writer.flush()
    if is_first:
        begun()


def _segments(writers: dict[int, StoreWriter], n: int) -> Iterator[tuple[int, int, list[int]]]:
    """Ranges of samples, first and end, and the blocks whose stores lack them. None extends over the end of a damaged
    shard or of a store, so that passes are cut where they were."""
    wanted = {block: writer.wanted(n) for block, writer in writers.items()}
    edges = sorted({edge for ranges in wanted.values() for ends in ranges for edge in ends})
    for start, stop in pairwise(edges):
        takers = [b for b, ranges in wanted.items() if any(first <= start and stop <= end for first, end in ranges)]
        if takers:
            yield start, stop, takers


def _ends(batches: dict[int, ActivationBatch]) -> tuple[int, int]:
    place = places(next(iter(batches.values())).sample)
    return int(place.min()), int(place.max()) + 1


def _check_mended(writers: Iterable[StoreWriter]) -> None:
    for writer in writers:
        for index in writer.damaged:
            raise TideError(
                f"{writer.path / writer.manifest['shards'][index]['file']} is damaged, and the data hold fewer images "
                "than when it was collected; restore the data, or collect into another folder"
            )

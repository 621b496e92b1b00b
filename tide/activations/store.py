"""Activations on disk: a folder with ``manifest.json`` and ``shard-*.safetensors``, read in shuffled batches without
loading it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from tide.activations.batch import ActivationBatch
from tide.activations.collect import sample_generator
from tide.activations.manifest import read_manifest
from tide.activations.parts import read_parts
from tide.activations.shards import shards_of
from tide.activations.stream import cut, shuffled
from tide.errors import TideError
from tide.files.remote import RemotePath, place_of
from tide.images.identity import Sample

#: Rows of one shard that are read and shuffled as one piece. Even, so that no pair is separated.
CHUNK_ROWS = 1024
#: Shards kept open: a mapping costs only address space, but there may be thousands of shards. Those of a store at a URL
#: stay on the disk while they are open, beside what the cache counts, so that they are fewer.
_OPEN_FILES, _OPEN_FETCHED = 1024, 64


class ActivationStore:
    """Reads an activation store, whole or still growing, through memory maps. A folder of parts
    (:mod:`tide.activations.parts`) is read as the store that one process would have collected, once all are finished.

    The path may be a URL (:mod:`tide.files.remote`): then a shard is fetched whole when it is first used, kept in a
    bounded cache (:mod:`tide.files.cache`), and every value of it is checked.

    It can be pickled and used by several processes: each opens the shards for itself.

    Raises :class:`~tide.errors.TideError` for a folder that is not a store, and for shards that are missing, truncated,
    pickled, foreign or swapped, as far as their headers show; :meth:`verify` reads everything.
    Shards that the manifest does not list are ignored.
    """

    def __init__(self, path: str | Path | RemotePath) -> None:
        self.path = place_of(path)
        self.manifest = read_parts(self.path) or read_manifest(self.path)
        self.shards = self.manifest["shards"]
        if not self.shards:
            raise TideError(f"{self.path} holds no activations yet; collect some first")
        self._shards = shards_of(self.path, self.manifest)
        self._files: dict[int, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file(self, index: int) -> Any:
        if self._process != os.getpid():  # after a fork
            self._files, self._process = {}, os.getpid()
        if index not in self._files:
            if len(self._files) >= (_OPEN_FETCHED if isinstance(self.path, RemotePath) else _OPEN_FILES):
                del self._files[next(iter(self._files))]
            self._files[index] = self._shards.open(index)
        return self._files[index]

    def __len__(self) -> int:
        """Rows in the store."""
        return self.manifest["rows"]

    @property
    def info(self) -> dict[str, Any]:
        """Where the activations come from, as :class:`StoreWriter` was told."""
        return self.manifest["info"]

    @property
    def d_model(self) -> int:
        """The width of the activations."""
        return self.manifest["d_model"]

    @property
    def paired(self) -> bool:
        """Whether rows 2i and 2i + 1 are one token at neighbouring timesteps."""
        return self.manifest["paired"]

    @property
    def complete(self) -> bool:
        """Whether the collection is finished."""
        return self.manifest["complete"]

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the contents: from the SHA-256 and the rows of every shard, in
        order. If the manifest does not list the SHA-256, the shards are read."""
        digest = hashlib.sha256()
        for index, shard in enumerate(self.shards):
            digest.update(f"{self._shards.digest(index)} {shard['rows']}\n".encode())
        return digest.hexdigest()[:16]

    def samples(self) -> list[Sample] | None:
        """The images and captions that it was collected from, in order; None if a shard does not record them."""
        found: list[Sample] = []
        for of_shard in self._shards.samples():
            if of_shard is None:
                return None
            found += of_shard
        return found

    def verify(self, share: tuple[int, int] = (0, 1)) -> None:
        """Reads every shard and raises :class:`~tide.errors.TideError` for the first that is not as written, or holds
        values that no collection writes: missing groups, negative tokens, NaN or inf.

        ``share=(i, n)`` is process i of n that divide the shards among them.
        """
        for index in range(share[0], len(self.shards), share[1]):
            self._shards.verify(index)

    def read(self, shard: int, start: int = 0, stop: int | None = None) -> ActivationBatch:
        """Rows ``start`` to ``stop`` of a shard, with the groups they use. Reads no other rows."""
        file, rows = self._file(shard), slice(start, stop)
        target = file.get_slice("target")[rows] if self.manifest.get("target") else None
        return replace(self._described(shard, start, stop), x=file.get_slice("x")[rows], target=target)

    def _described(self, shard: int, start: int, stop: int | None) -> ActivationBatch:
        """As :meth:`read`, with (shard, row in it) for ``x`` and without targets. Reads no activations."""
        file, rows = self._file(shard), slice(start, stop)
        has_conditioning = bool(self.manifest["d_conditioning"])
        used, group = torch.unique(file.get_slice("group")[rows], return_inverse=True)
        if not len(used):
            raise TideError(f"{self.path / self.shards[shard]['file']} has no rows {start}..{stop}; read others")
        if int(used[0]) < 0 or int(used[-1]) >= self.shards[shard]["groups"]:
            raise TideError(
                f"{self.path / self.shards[shard]['file']} names groups that it does not hold; collect again"
            )
        groups = slice(int(used[0]), int(used[-1]) + 1)  # rows of one call are neighbours, so this is a short piece
        used = used.long() - groups.start
        places = torch.arange(start, start + len(group))
        return ActivationBatch(
            x=torch.stack([torch.full_like(places, shard), places], 1),
            timestep=file.get_slice("timestep")[groups][used],
            group=group.to(torch.int32),
            conditioning=file.get_slice("conditioning")[groups][used] if has_conditioning else None,
            sample=file.get_slice("sample")[rows],
            token=file.get_slice("token")[rows],
            paired=self.paired,
        )

    def _filled(self, places: ActivationBatch) -> ActivationBatch:
        """The batch of which ``places`` has (shard, row in it) for ``x``. Reads the activations of these rows alone."""
        names = ("x", "target") if self.manifest.get("target") else ("x",)
        found: dict[str, Tensor] = {}
        for shard in places.x[:, 0].unique().tolist():
            here = places.x[:, 0] == shard
            for name in names:
                rows = self._file(shard).get_tensor(name)[places.x[here, 1]]  # mapped, so no others are touched
                if name not in found:
                    found[name] = rows.new_empty(len(places), self.d_model)
                found[name][here] = rows
        return replace(places, x=found["x"], target=found.get("target"))

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        buffer_rows: int = 65536,
        start: int = 0,
        shard: tuple[int, int] = (0, 1),
        part: slice | None = None,
    ) -> Iterator[ActivationBatch]:
        """Shuffled batches of ``batch_size`` rows, pairs together; without end if ``epochs`` is None.

        An epoch visits every row once: pieces of :data:`CHUNK_ROWS` rows are taken from all shards in a
        random order, ``buffer_rows`` rows at a time, and the rows of each buffer are shuffled. Epochs follow one
        another without a gap, so only the very last batch may be smaller.

        Batch number b depends only on the arguments and on b. So b is the whole state of a reader: a run that has used
        b batches resumes with ``start=b``, and only the buffer of that batch is read again.

        ``shard=(i, n)`` is reader i of n that divide the pieces among them: together they visit every row once an
        epoch. In a worker of a ``torch.utils.data.DataLoader`` the workers divide what is the process's own (its
        ``shard``), and ``start`` counts the batches of the loader: with as many workers it resumes where it stopped. If
        there are fewer pieces than readers, a reader without a piece yields nothing.

        With ``part`` it yields these rows of each batch, with the timesteps of the whole batch, and of local shards
        reads the activations of no other row.
        """
        unit = 2 if self.paired else 1
        if batch_size < 1 or batch_size % unit:
            raise TideError(
                f"batch_size {batch_size} is not {'even (pairs)' if self.paired else 'positive'}; change it"
            )
        if buffer_rows < CHUNK_ROWS:
            raise TideError(f"buffer_rows {buffer_rows} is too small to mix; give at least {CHUNK_ROWS}")
        if not 0 <= shard[0] < shard[1]:
            raise TideError(f"reader {shard[0]} of {shard[1]} does not exist; give (i, n) with 0 <= i < n")
        reader, of, start = _part_of_worker(shard, start)
        chunks = self._chunks()[reader::of]
        if not chunks:
            return iter(())
        epoch, skip = divmod(start * batch_size, sum(stop - first for _, first, stop in chunks))
        # Rows of a batch lie in many shards. Those at a URL are better read once for all of a buffer.
        by_row = part is not None and not isinstance(self.path, RemotePath)
        read = self._described if by_row else self.read
        pieces = (
            piece
            for number in (count(epoch) if epochs is None else range(epoch, epochs))
            for piece in self._epoch(read, chunks, seed, number, buffer_rows, skip if number == epoch else 0)
        )
        whole = cut(pieces, batch_size)
        if part is None:
            return whole
        own = (batch.merged().take(part) for batch in whole)
        return map(self._filled, own) if by_row else own

    def _chunks(self) -> list[tuple[int, int, int]]:
        """Every piece of the store: its shard, its first row and the row after its last."""
        return [
            (index, first, min(first + CHUNK_ROWS, shard["rows"]))
            for index, shard in enumerate(self.shards)
            for first in range(0, shard["rows"], CHUNK_ROWS)
        ]

    def _epoch(
        self,
        read: Callable[[int, int, int], ActivationBatch],
        chunks: list[tuple[int, int, int]],
        seed: int,
        epoch: int,
        buffer_rows: int,
        skip: int,
    ) -> Iterator[ActivationBatch]:
        """What ``read`` gives of an epoch's rows from row ``skip`` of its order on, a shuffled buffer at a time."""
        order = np.random.default_rng([seed, epoch]).permutation(len(chunks))
        per_buffer = buffer_rows // CHUNK_ROWS
        for window in range(math.ceil(len(chunks) / per_buffer)):
            chosen = sorted(chunks[i] for i in order[window * per_buffer : (window + 1) * per_buffer])
            n_rows = sum(stop - first for _, first, stop in chosen)
            if skip >= n_rows:
                skip -= n_rows
                continue
            self._shards.prepare({index for index, _, _ in chosen} - self._files.keys())
            whole = ActivationBatch.cat([read(*chunk) for chunk in chosen])
            mixed = shuffled(whole, sample_generator(seed, epoch, window))
            yield mixed.take(slice(skip, None))
            skip = 0


def _part_of_worker(shard: tuple[int, int], start: int) -> tuple[int, int, int]:
    """The part (i, n) and the first batch of this process, its ``shard`` divided among the workers of a DataLoader.

    The loader takes a batch from each worker in turn, beginning with the first. After ``start`` batches it is the turn
    of worker ``start % n``, so the first worker now gets that part.
    """
    worker = get_worker_info()
    if worker is None:
        return *shard, start
    turn = (worker.id + start) % worker.num_workers
    taken = (start - turn + worker.num_workers - 1) // worker.num_workers
    return shard[0] * worker.num_workers + turn, shard[1] * worker.num_workers, taken

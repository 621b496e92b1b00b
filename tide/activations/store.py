"""Activations on disk: a folder with ``manifest.json`` and ``shard-*.safetensors``, written so that it is
whole at any moment and read in shuffled batches without loading it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tide.activations.batch import ActivationBatch
from tide.activations.collect import sample_generator
from tide.activations.stream import cut, shuffled
from tide.errors import TideError
from tide.files import read_json, replace_file, what_is_wrong, write_json

FORMAT = "tide-activations/1"
MANIFEST = "manifest.json"
#: Rows of one shard that are read, and shuffled, as a piece. Even, so that no pair is parted.
CHUNK_ROWS = 1024
#: Bytes of a row besides x: sample, token, group.
_ROW_BYTES = 8 + 4 + 4


def estimate_bytes(
    n_samples: int,
    n_tokens: int,
    d_model: int,
    *,
    token_fraction: float = 1 / 16,
    paired: bool = True,
    d_conditioning: int = 0,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Size on disk of one block's activations of ``n_samples`` images of ``n_tokens`` tokens, as
    :func:`tide.activations.collect` takes them; 0.1 % and a few KB a shard are the error."""
    calls = n_samples * (1 + paired)
    rows = calls * max(1, round(n_tokens * token_fraction))
    return rows * (d_model * dtype.itemsize + _ROW_BYTES) + calls * 4 * (1 + d_conditioning)


def _size(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


class StoreWriter:
    """Writes an activation store; use it as a context manager, or call :meth:`close`.

    Every file appears under its name when it is whole, and the manifest lists whole shards only. So what a
    crash leaves behind is a readable store, and with ``resume=True`` a writer goes on with it: collect again
    with ``start=writer.next_sample`` and the same seed. A shard holds whole batches, as many as fit
    ``shard_bytes`` (one at least).

    Args:
        path: the folder; created. It must not hold a store unless ``resume``.
        info: what the activations are of (block, tensor, model, seed ...), JSON-able, kept in the manifest.
        expected_bytes: what is to come (:func:`estimate_bytes`), checked against quota and free disk at once.
        quota: the most bytes the store may take.

    Raises :class:`~tide.errors.TideError` if quota or disk do not suffice, before anything is written, and
    when they are used up; what was written before stays.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        info: dict[str, Any] | None = None,
        expected_bytes: int = 0,
        quota: int | None = None,
        shard_bytes: int = 256 * 2**20,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        self.quota = quota
        self.shard_bytes = shard_bytes
        self._pending: list[ActivationBatch] = []
        self._pending_bytes = 0
        existing = (self.path / MANIFEST).exists()
        if existing and not resume:
            raise TideError(f"{self.path} already holds activations; resume, or choose another folder")
        self.manifest: dict[str, Any] = (
            _read_manifest(self.path)
            if existing
            else {
                "format": FORMAT,
                "info": info or {},
                "rows": 0,
                "next_sample": 0,
                "complete": False,
                "shards": [],
            }
        )
        if existing and info is not None and info != self.manifest["info"]:
            raise TideError(f"{self.path} holds {self.manifest['info']}, not {info}; choose another folder")
        self._written = sum(shard["bytes"] for shard in self.manifest["shards"])
        self._check_space(max(0, expected_bytes - self._written), "are expected")
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink()

    @property
    def next_sample(self) -> int:
        """The first sample that is not in the store: where a resumed collection starts."""
        return int(self.manifest["next_sample"])

    @property
    def rows(self) -> int:
        """Rows on disk; those of the unfinished shard are not among them."""
        return int(self.manifest["rows"])

    def add(self, batch: ActivationBatch) -> None:
        """Takes a batch; writes a shard when it is full."""
        if not len(batch):
            return
        kind: dict[str, Any] = {
            "d_model": batch.d_model,
            "dtype": str(batch.x.dtype).removeprefix("torch."),
            "paired": batch.paired,
            "d_conditioning": 0 if batch.conditioning is None else batch.conditioning.shape[1],
        }
        for name, value in kind.items():
            if self.manifest.setdefault(name, value) != value:
                raise TideError(
                    f"{self.path} holds activations with {name} {self.manifest[name]} and not {value}; "
                    "choose another folder"
                )
        batch = batch.to("cpu").compacted()
        n_bytes = len(batch) * (batch.d_model * batch.x.element_size() + _ROW_BYTES)
        n_bytes += len(batch.timestep) * 4 * (1 + kind["d_conditioning"])
        if self._pending and self._pending_bytes + n_bytes > self.shard_bytes:
            self._flush()
        self._pending.append(batch)
        self._pending_bytes += n_bytes

    def close(self) -> None:
        """Writes what is left and marks the store complete."""
        self._flush()
        self._save_manifest(complete=True)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An interrupted collection keeps its whole shards and stays marked as incomplete.
        if kind is None:
            self.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        batch = ActivationBatch.cat(self._pending)
        self._check_space(self._pending_bytes, "are next")
        name = f"shard-{len(self.manifest['shards']):05d}.safetensors"
        tensors = {
            "x": batch.x,
            "sample": batch.sample.to(torch.int64),
            "token": batch.token.to(torch.int32),
            "timestep": batch.timestep.to(torch.float32),
            "group": batch.group.to(torch.int32),
        }
        if batch.conditioning is not None:
            tensors["conditioning"] = batch.conditioning.to(torch.float32)
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        file = self.path / name
        replace_file(file, lambda temporary: save_file(tensors, temporary, metadata={"format": FORMAT}))
        n_bytes = file.stat().st_size
        shard = {"file": name, "rows": len(batch), "groups": len(batch.timestep), "bytes": n_bytes}
        samples = torch.where(batch.sample < 0, -1 - batch.sample, batch.sample)
        self.manifest["shards"].append(shard)
        self.manifest["rows"] += len(batch)
        self.manifest["next_sample"] = max(self.next_sample, int(samples.max()) + 1)
        self._save_manifest(complete=False)
        self._pending, self._pending_bytes = [], 0
        self._written += n_bytes

    def _save_manifest(self, *, complete: bool) -> None:
        self.manifest["complete"] = complete
        write_json(self.path / MANIFEST, self.manifest)

    def _check_space(self, n_bytes: int, what: str) -> None:
        if self.quota is not None and self._written + n_bytes > self.quota:
            raise TideError(
                f"{_size(n_bytes)} of activations {what} and {self.path} may take {_size(self.quota)}, "
                f"{_size(self._written)} of it used; raise the quota or collect fewer tokens or images"
            )
        at = next(parent for parent in (self.path.absolute(), *self.path.absolute().parents) if parent.exists())
        free = shutil.disk_usage(at).free
        if n_bytes > free:
            raise TideError(
                f"{_size(n_bytes)} of activations {what} and the disk of {self.path} has {_size(free)} free; "
                "free some space, choose another folder or collect fewer tokens or images"
            )


class ActivationStore:
    """Reads an activation store, whole or still growing, through memory maps.

    Raises :class:`~tide.errors.TideError` for a folder that is no store and for shards that are missing,
    truncated, pickled or foreign. Shards that the manifest does not list are ignored.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        if not self.shards:
            raise TideError(f"{self.path} holds no activations yet; collect some first")
        for shard in self.shards:
            file = _open(self.path / shard["file"])
            if file.get_slice("x").get_shape() != [shard["rows"], self.d_model]:
                raise TideError(
                    f"{self.path / shard['file']} is not the shard that the manifest lists; collect it anew"
                )
        # The mapping costs address space only, yet there may be thousands of shards.
        self._open = lru_cache(maxsize=64)(lambda index: _open(self.path / self.shards[index]["file"]))

    def __len__(self) -> int:
        """Rows in the store."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def info(self) -> dict[str, Any]:
        return self.manifest["info"]

    @property
    def d_model(self) -> int:
        return int(self.manifest["d_model"])

    @property
    def paired(self) -> bool:
        return bool(self.manifest["paired"])

    @property
    def complete(self) -> bool:
        """Whether the collection reached its end."""
        return bool(self.manifest["complete"])

    def read(self, shard: int, start: int = 0, stop: int | None = None) -> ActivationBatch:
        """Rows ``start`` to ``stop`` of a shard, with the groups they use. Reads no other rows."""
        file, rows = self._open(shard), slice(start, stop)
        has_conditioning = bool(self.manifest["d_conditioning"])
        used, group = torch.unique(file.get_slice("group")[rows], return_inverse=True)
        groups = slice(int(used[0]), int(used[-1]) + 1)  # rows of one call are neighbours, so this is a short piece
        used = used.long() - groups.start
        return ActivationBatch(
            x=file.get_slice("x")[rows],
            timestep=file.get_slice("timestep")[groups][used],
            group=group.to(torch.int32),
            conditioning=file.get_slice("conditioning")[groups][used] if has_conditioning else None,
            sample=file.get_slice("sample")[rows],
            token=file.get_slice("token")[rows],
            paired=self.paired,
        )

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        buffer_rows: int = 65536,
        start: int = 0,
    ) -> Iterator[ActivationBatch]:
        """Shuffled batches of ``batch_size`` rows, pairs together; without end if ``epochs`` is None.

        An epoch visits every row once: pieces of :data:`CHUNK_ROWS` rows are taken from all shards in a
        random order, ``buffer_rows`` rows at a time, and the rows of each buffer are shuffled. Epochs follow
        on each other without a gap, so only the very last batch may be smaller.

        Batch number b depends on the arguments and on b alone. So b is the whole state of a reader: a run
        that has used b batches goes on with ``start=b``, and only the buffer in question is read again.
        """
        unit = 2 if self.paired else 1
        if batch_size < 1 or batch_size % unit:
            raise TideError(
                f"batch_size {batch_size} is not {'even (pairs)' if self.paired else 'positive'}; change it"
            )
        if buffer_rows < CHUNK_ROWS:
            raise TideError(f"buffer_rows {buffer_rows} is too small to mix; give at least {CHUNK_ROWS}")
        epoch, skip = divmod(start * batch_size, len(self))
        pieces = (
            piece
            for number in (count(epoch) if epochs is None else range(epoch, epochs))
            for piece in self._epoch(seed, number, buffer_rows, skip if number == epoch else 0)
        )
        return cut(pieces, batch_size)

    def _epoch(self, seed: int, epoch: int, buffer_rows: int, skip: int) -> Iterator[ActivationBatch]:
        """The rows of an epoch from row ``skip`` of its order on, a shuffled buffer at a time."""
        chunks = [
            (index, first, min(first + CHUNK_ROWS, shard["rows"]))
            for index, shard in enumerate(self.shards)
            for first in range(0, shard["rows"], CHUNK_ROWS)
        ]
        order = np.random.default_rng([seed, epoch]).permutation(len(chunks))
        per_buffer = buffer_rows // CHUNK_ROWS
        for window in range(math.ceil(len(chunks) / per_buffer)):
            chosen = sorted(chunks[i] for i in order[window * per_buffer : (window + 1) * per_buffer])
            n_rows = sum(stop - first for _, first, stop in chosen)
            if skip >= n_rows:
                skip -= n_rows
                continue
            whole = ActivationBatch.cat([self.read(*chunk) for chunk in chosen])
            mixed = shuffled(whole, sample_generator(seed, epoch, window))
            yield mixed.take(slice(skip, None))
            skip = 0


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        raise TideError(f"{path} holds no {MANIFEST}; give the folder of an activation store")
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise TideError(f"{path / MANIFEST} is not of the format {FORMAT}; give the folder of an activation store")
    needed: Sequence[str] = ("info", "rows", "next_sample", "complete", "shards")
    if manifest.get("shards"):
        needed = (*needed, "d_model", "dtype", "paired", "d_conditioning")
    if missing := [name for name in needed if name not in manifest]:
        raise TideError(f"{path / MANIFEST} lacks {', '.join(missing)}; collect the activations anew")
    return manifest


def _open(path: Path) -> Any:
    """A memory-mapped safetensors file of this format."""
    if not path.is_file():
        raise TideError(f"{path} is missing; copy the whole folder or collect the activations anew")
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise TideError(f"{path} is not a readable shard ({what_is_wrong(path)}: {error}); collect it anew") from None
    if (file.metadata() or {}).get("format") != FORMAT:
        raise TideError(f"{path} is a safetensors file of another kind; collect the activations anew")
    return file

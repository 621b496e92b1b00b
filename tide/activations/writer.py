"""Writes an activation store that is consistent at any moment; resuming checks every shard."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.activations.manifest import (
    FORMAT,
    MANIFEST,
    SAMPLES,
    SHARD,
    Shard,
    encoded,
    manifest_at,
    new_manifest,
    places,
    record_of,
    sample_range,
    shard_number,
)
from tide.activations.target import target_of
from tide.errors import TideError
from tide.files import json_writer, tensors_writer
from tide.files.remote import RemotePath, place_of
from tide.images.identity import Sample, digest_of
from tide.messages import readable_size
from tide.provenance import check_unchanged

#: Entries of ``info`` that may differ when a store is resumed: they affect the rounding of values only.
ROUNDING = ("threads",)
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
    target: bool = False,
) -> int:
    """Size on disk of one block's activations of ``n_samples`` images of ``n_tokens`` tokens, as
    :func:`tide.activations.collect` takes them, with targets beside them or without; accurate to 0.1 % and a few KB
    per shard.

    Args:
        n_samples: images.
        n_tokens: of an image.
        d_model: width of the activations.
        token_fraction: share of the tokens that is kept, in (0, 1].
        paired: every token is kept at two timesteps.
        d_conditioning: numbers of a row's conditioning, 0 without one.
        dtype: of the activations.
        target: a transcoder's targets lie beside them.
    """
    calls = n_samples * (1 + paired)
    rows = calls * max(1, round(n_tokens * token_fraction))
    return rows * ((1 + target) * d_model * dtype.itemsize + _ROW_BYTES) + calls * 4 * (1 + d_conditioning)


def existing_parent(path: Path) -> Path:
    """``path`` itself, or the nearest of its parents that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def check_disk(n_bytes: int, path: Path, what: str) -> None:
    """Raises :class:`~tide.errors.TideError` unless the disk of ``path`` has room for ``n_bytes``."""
    free = shutil.disk_usage(existing_parent(path)).free
    if n_bytes > free:
        raise TideError(
            f"{readable_size(n_bytes)} of activations {what} and the disk of {path} has {readable_size(free)} free; "
            "free some space, choose another folder or collect fewer tokens or images"
        )


class _Pending:
    """Batches that will be written to one shard."""

    def __init__(self) -> None:
        self.batches: list[ActivationBatch] = []
        self.samples: list[Sample] = []
        self.bytes = 0

    def add(self, batch: ActivationBatch, samples: Sequence[Sample], n_bytes: int) -> None:
        self.batches.append(batch)
        self.samples += samples
        self.bytes += n_bytes


class StoreWriter:
    """Writes an activation store; use it as a context manager, or call :meth:`close`.

    The writer locks the folder until it is closed: a second writer is refused. A file gets its name only when it is
    complete and on the disk, and the manifest, written after it, lists complete shards only. So a crash or a power loss
    leaves a readable store. With ``resume=True`` a writer continues it: it reads every shard, compares its SHA-256 and
    checks its values. Then collect ``wanted`` again with the same seed: samples of ``damaged`` shards replace them,
    and those from :attr:`next_sample` on are appended. A shard holds whole batches, as many as fit ``shard_bytes`` (at
    least one).

    Args:
        path: the folder; created if needed, and removed again if this writer made it and leaves it empty. It must not
            hold a store unless ``resume``. A URL is written by way of a local folder
            (:class:`~tide.activations.target.RemoteTarget`).
        info: where the activations come from (block, tensor, model, seed ...), JSON-able, kept in the manifest. When
            resuming, entries of the manifest must be the same, except for :data:`ROUNDING`.
        expected_bytes: the expected size (:func:`estimate_bytes`), checked against quota and free disk at once.
        quota: the most bytes that all shards in the folder may take, including those that a crash left unlisted; while
            a damaged shard is replaced, both copies count on disk.
        first_sample: where an empty store begins: that of a part is not the data's first.

    Raises :class:`~tide.errors.TideError` if quota or disk do not suffice, before anything is written, and when they
    are used up; everything written before stays.
    """

    def __init__(
        self,
        path: str | Path | RemotePath,
        *,
        info: dict[str, Any] | None = None,
        expected_bytes: int = 0,
        quota: int | None = None,
        shard_bytes: int = 256 * 2**20,
        resume: bool = False,
        first_sample: int = 0,
    ) -> None:
        self.path = place_of(path)
        self.target = target_of(self.path)
        self.first_sample = first_sample
        self.quota = quota
        self.shard_bytes = shard_bytes
        #: Index of a damaged shard -> what is wrong with it. The file stays until it is replaced.
        self.damaged: dict[int, str] = {}
        #: Entries of ``info`` that a resumed store did not hold before.
        self.unrecorded: list[str] = []
        self._pending = _Pending()
        self._mending: dict[int, _Pending] = {}
        #: Number of shards that this writer wrote.
        self.n_written = 0
        #: The last shard, if the next one will replace it.
        self._outdated: Shard | None = None
        #: Place in the data -> the sample recorded there.
        self.recorded: dict[int, Sample] = {}
        with ExitStack() as held:
            held.enter_context(self.target.held())
            self._open(info, resume)
            self._check_space(max(0, expected_bytes - self.used), "are expected")
            self._held = held.pop_all()

    def _open(self, info: dict[str, Any] | None, resume: bool) -> None:
        existing = manifest_at(self.path) if resume else None
        if not resume and self.target.holds(MANIFEST):
            raise TideError(f"{self.path} already holds activations; resume, or choose another folder")
        # A crash before the first manifest leaves the first shard alone.
        if existing is None and self.target.sizes().keys() - {SHARD.format(0)}:
            raise TideError(f"{self.path} holds shards and no {MANIFEST}; copy it back, or choose another folder")
        self.manifest = existing or new_manifest(info or {})
        if existing is None:
            return
        if info is not None:
            self._check_info(info)
        self._verify()

    def _check_info(self, info: dict[str, Any]) -> None:
        before = self.manifest["info"]
        fixed = {name: value for name, value in before.items() if name not in ROUNDING}
        what, remedy = f"{self.path} was collected with other options", "use the same options or another folder"
        check_unchanged(fixed, {name: info.get(name) for name in fixed}, what, remedy=remedy)
        self.unrecorded = sorted(info.keys() - before.keys())
        self.manifest["info"] = {**info, **before}

    def _verify(self) -> None:
        """Reads every shard; completes entries written by an earlier version."""
        for index, shard in enumerate(self.manifest["shards"]):
            try:
                samples = self.target.verified(self.manifest, shard)
            except TideError as error:
                self.damaged[index] = str(error)
                samples = self.target.recorded(shard)
            self._record(shard, samples or ())
        self._place_damaged()

    def _place_damaged(self) -> None:
        """Infers from its neighbours what a damaged shard held, if an earlier version did not record it. Several
        damaged shards in a row become one."""
        shards = self.manifest["shards"]
        kept: list[Shard] = []
        damaged: dict[int, str] = {}
        end = 0
        for index, shard in enumerate(shards):
            if "samples" not in shard or "first_sample" not in shard:
                if kept and damaged.get(len(kept) - 1) and index and "samples" not in shards[index - 1]:
                    continue
                following = (each.get("first_sample") for each in shards[index + 1 :])
                to = next((first for first in following if first is not None), self.next_sample)
                shard = {**shard, "first_sample": end, "samples": to - end}
            if index in self.damaged:
                damaged[len(kept)] = self.damaged[index]
            kept.append(shard)
            end = shard["first_sample"] + shard["samples"]
        self.damaged = damaged
        self.manifest["shards"] = kept
        self.manifest["rows"] = sum(shard["rows"] for shard in kept)

    def _record(self, shard: Shard, samples: Sequence[Sample]) -> None:
        if len(samples) == shard.get("samples"):
            self.recorded |= dict(enumerate(samples, shard["first_sample"]))

    @property
    def next_sample(self) -> int:
        """The first sample after those in the store: where a collection resumes."""
        if self._outdated is not None:
            return self._outdated["first_sample"]
        return self.manifest["next_sample"] if self.manifest["shards"] else self.first_sample

    @property
    def rows(self) -> int:
        """Rows on disk, without those of the unfinished shard."""
        return self.manifest["rows"]

    @property
    def used(self) -> int:
        """Bytes of all shards in the folder, listed or not, except for one that the next shard will replace."""
        return self._bytes_without()

    def _bytes_without(self, *names: str) -> int:
        without = {self._next_name, *names, *([] if self._outdated is None else [self._outdated["file"]])}
        return sum(size for name, size in self.target.sizes().items() if name not in without)

    @property
    def _next_name(self) -> str:
        numbers = (shard_number(shard["file"]) for shard in self.manifest["shards"])
        return SHARD.format(1 + max(numbers, default=-1))

    def wanted(self, n_samples: int) -> list[tuple[int, int]]:
        """Ranges ``(first, end)`` of samples that are missing from the first ``n_samples``."""
        shards = [self.manifest["shards"][index] for index in self.damaged]
        ranges = [(shard["first_sample"], shard["first_sample"] + shard["samples"]) for shard in shards]
        return [*ranges, *([(self.next_sample, n_samples)] if self.next_sample < n_samples else [])]

    def align(self, per_pass: int) -> None:
        """Call before more samples are appended. If the last pass of the last shard held fewer than ``per_pass``
        images, because the data ended there, the shard will be collected again, so that all values equal those of one
        uninterrupted collection. It stays until the next shard replaces it."""
        if self.next_sample % per_pass and self.manifest["shards"]:
            self.damaged.pop(len(self.manifest["shards"]) - 1, None)
            self._outdated = self.manifest["shards"][-1]

    def add(self, batch: ActivationBatch, samples: Sequence[Sample] = ()) -> None:
        """Takes a batch; writes a shard when it is full. ``samples`` are those read at the batch's places, in order."""
        if not len(batch):
            return
        self._check_kind(batch)
        batch = batch.to("cpu").compacted()
        n_bytes = self._bytes(batch)
        if (index := self._damaged_place(batch)) is not None:
            self._mending.setdefault(index, _Pending()).add(batch, samples, n_bytes)
            self._mend(index)
            return
        if self._pending.batches and self._pending.bytes + n_bytes > self.shard_bytes:
            self.flush()
        self._pending.add(batch, samples, n_bytes)

    def _check_kind(self, batch: ActivationBatch) -> None:
        kind: dict[str, Any] = {
            "d_model": batch.d_model,
            "dtype": str(batch.x.dtype).removeprefix("torch."),
            "paired": batch.paired,
            "d_conditioning": 0 if batch.conditioning is None else batch.conditioning.shape[1],
            "target": batch.target is not None,
        }
        known: dict[str, Any] = self.manifest  # type: ignore[assignment]
        if known["shards"]:
            known.setdefault("target", False)  # which stores of earlier versions do not say
        for name, value in kind.items():
            if known.setdefault(name, value) != value:
                raise TideError(
                    f"{self.path} holds activations with {name} {known[name]} and not {value}; choose another folder"
                )

    def _bytes(self, batch: ActivationBatch) -> int:
        tensors = 1 if batch.target is None else 2
        per_row = tensors * batch.d_model * batch.x.element_size() + _ROW_BYTES
        return len(batch) * per_row + len(batch.timestep) * 4 * (1 + self.manifest["d_conditioning"])

    def _damaged_place(self, batch: ActivationBatch) -> int | None:
        """The damaged shard that the batch belongs to."""
        first = int(places(batch.sample).min())
        for index in self.damaged:
            shard = self.manifest["shards"][index]
            if shard["first_sample"] <= first < shard["first_sample"] + shard["samples"]:
                return index
        return None

    def _mend(self, index: int) -> None:
        """Replaces a damaged shard once all its samples are there."""
        shard, mending = self.manifest["shards"][index], self._mending[index]
        held = torch.cat([places(batch.sample) for batch in mending.batches])
        if int(held.max()) + 1 < shard["first_sample"] + shard["samples"]:
            return
        digest = digest_of(mending.samples)
        if mending.samples and digest != shard.get("data", digest):
            last = shard["first_sample"] + shard["samples"] - 1
            raise TideError(
                f"{self.path / shard['file']} is damaged, and samples {shard['first_sample']}..{last} of the data are "
                "not those that it was collected from; restore the data, without images that were added since, or "
                "collect into another folder"
            )
        entry = self._write(shard["file"], mending)
        shards = self.manifest["shards"]
        shards = [*shards[:index], entry, *shards[index + 1 :]]
        self._save(shards, next_sample=self.manifest["next_sample"], complete=False)
        del self.damaged[index], self._mending[index]
        self.n_written += 1

    def close(self) -> None:
        """Writes the unfinished shard, marks the store complete unless it still has damaged shards, and unlocks the
        folder."""
        with self._held:
            self.flush()
            complete = not self.damaged and self._outdated is None
            self._save(self.manifest["shards"], next_sample=self.manifest["next_sample"], complete=complete)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        # An interrupted collection keeps its complete shards and stays marked as incomplete.
        if kind is None:
            self.close()
        else:
            self._held.__exit__(kind, error, trace)

    def flush(self) -> None:
        """Writes the unfinished shard as it is."""
        if not self._pending.batches:
            return
        entry = self._write(self._next_name, self._pending)
        shards, outdated = self.manifest["shards"], self._outdated
        end = max(self.next_sample, entry["first_sample"] + entry["samples"])
        self._save([*(shards if outdated is None else shards[:-1]), entry], next_sample=end, complete=False)
        if outdated is not None:
            self._outdated = None
            for name in (record_of(outdated["file"]), outdated["file"]):
                self.target.remove(name)
        self._record(entry, self._pending.samples)
        self._pending = _Pending()
        self.n_written += 1

    def _write(self, name: str, pending: _Pending) -> Shard:
        """Writes one shard; returns its entry for the manifest."""
        self._check_space(pending.bytes, "are next", replaced=name)
        batch = ActivationBatch.cat(pending.batches)
        tensors = _tensors(batch)
        record = {}
        if pending.samples:
            tensors[SAMPLES] = encoded(pending.samples)
            record[record_of(name)] = json_writer(pending.samples)
        size, sha256 = self.target.put({**record, name: tensors_writer(tensors, {"format": FORMAT})})
        entry: Shard = {
            "file": name,
            "rows": len(batch),
            "groups": len(batch.timestep),
            "bytes": size,
            "sha256": sha256,
            **sample_range(batch.sample),  # type: ignore[typeddict-item]
        }
        return {**entry, "data": digest_of(pending.samples)} if pending.samples else entry

    def _save(self, shards: list[Shard], *, next_sample: int, complete: bool) -> None:
        """Writes the manifest, then adopts it."""
        manifest = {
            **self.manifest,
            "shards": shards,
            "rows": sum(shard["rows"] for shard in shards),
            "next_sample": next_sample,
            "complete": complete,
        }
        self.target.put({MANIFEST: json_writer(manifest)})
        self.manifest = manifest  # type: ignore[assignment]

    def _check_space(self, n_bytes: int, what: str, replaced: str = "") -> None:
        used = self._bytes_without(replaced)
        if self.quota is not None and used + n_bytes > self.quota:
            raise TideError(
                f"{readable_size(n_bytes)} of activations {what} and {self.path} may take {readable_size(self.quota)}, "
                f"{readable_size(used)} of it used; raise the quota or collect fewer tokens or images"
            )
        check_disk(self.target.needed(n_bytes, self.shard_bytes), self.target.local, what)


def _tensors(batch: ActivationBatch) -> dict[str, Tensor]:
    """A shard's tensors, each in the dtype of the format."""
    tensors = {
        "x": batch.x,
        "sample": batch.sample.to(torch.int64),
        "token": batch.token.to(torch.int32),
        "timestep": batch.timestep.to(torch.float32),
        "group": batch.group.to(torch.int32),
    }
    if batch.target is not None:
        tensors["target"] = batch.target
    if batch.conditioning is not None:
        tensors["conditioning"] = batch.conditioning.to(torch.float32)
    return tensors

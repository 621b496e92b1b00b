"""Stores of known rows, and their contents to compare."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from tide.activations.batch import ActivationBatch
from tide.activations.store import ActivationStore
from tide.activations.writer import StoreWriter
from tide.images.identity import Sample

INFO = {"block": 6, "tensor": "output"}


def batch_of(sample: int, n: int = 40, *, paired: bool = True, conditioned: bool = True, **kwargs) -> ActivationBatch:
    """Row x = [sample, token, timestep]; two timesteps in turn."""
    timestep = torch.tensor([100.0 + sample, 50.0 + sample])
    group = torch.arange(n, dtype=torch.int32) % 2
    token = torch.arange(n, dtype=torch.int32) // 2
    whose = torch.full((n,), sample)
    return ActivationBatch(
        **{
            "x": torch.stack([whose, token, timestep[group.long()]], 1).float(),
            "timestep": timestep,
            "group": group,
            "conditioning": torch.stack([timestep, -timestep], 1) if conditioned else None,
            "sample": whose,
            "token": token,
            "paired": paired,
            **kwargs,
        }
    )


def check_rows(batch: ActivationBatch) -> None:
    timestep = batch.timestep[batch.group.long()]
    assert torch.equal(batch.x, torch.stack([batch.sample, batch.token, timestep], 1))
    if batch.conditioning is not None:
        assert torch.equal(batch.conditioning[batch.group.long()], torch.stack([timestep, -timestep], 1))
    if batch.paired:
        assert torch.equal(batch.x[::2, :2], batch.x[1::2, :2])
        assert torch.equal(timestep[::2], timestep[1::2] + 50)


def write(path: Path, n_samples: int = 6, *, shard_bytes: int = 3000, start: int = 0, n: int = 40, **kwargs) -> Path:
    batch_options = {name: kwargs.pop(name) for name in ("paired", "conditioned") if name in kwargs}
    with StoreWriter(path, info=INFO, shard_bytes=shard_bytes, **kwargs) as writer:
        for sample in range(start, n_samples):
            writer.add(batch_of(sample, n, **batch_options))
    return path


def described(sample: int) -> Sample:
    return Sample(f"{sample}.png", f"image {sample}", f"caption {sample}")


def go_on(path: Path, n_samples: int = 6, *, shard_bytes: int = 3000, **kwargs) -> StoreWriter:
    """Collects what the store lacks of ``n_samples`` samples, one a batch; returns the closed writer."""
    with StoreWriter(path, info=INFO, shard_bytes=shard_bytes, resume=True, **kwargs) as writer:
        for first, end in writer.wanted(n_samples):
            for sample in range(first, end):
                writer.add(batch_of(sample), [described(sample)])
    return writer


def contents(path: Path) -> dict[str, str]:
    """Name -> digest of every file of a store, its lock left out."""
    files = (file for file in path.iterdir() if file.name != ".lock")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def edit_manifest(path: Path, change) -> None:
    """Has ``change`` work on the manifest of a store."""
    file = path / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def rows_of(path: Path) -> ActivationBatch:
    store = ActivationStore(path)
    return ActivationBatch.cat([store.read(i) for i in range(len(store.shards))])


def assert_same_rows(path: Path, other: Path) -> None:
    """Every row in the same order, bit for bit, and all that is said of it."""
    found, wanted = rows_of(path), rows_of(other)
    for name in ("x", "sample", "token", "timestep", "group"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert (found.conditioning is None) == (wanted.conditioning is None)

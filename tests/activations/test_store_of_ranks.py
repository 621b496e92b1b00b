"""Ranks that train on one store: each reads its own rows of every batch, and verifies its share of the shards."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.store_batches import INFO, batch_of, write
from tide.activations.store import ActivationStore
from tide.activations.writer import StoreWriter
from tide.errors import TideError

ROWS, RANKS, STEPS = 48, 3, 12
PARTS = [slice(rank * ROWS // RANKS, (rank + 1) * ROWS // RANKS) for rank in range(RANKS)]
NAMES = ("x", "timestep", "group", "conditioning", "sample", "token", "target")


def store_of(path: Path, **kinds: bool) -> Path:
    if not kinds.pop("targets", False):
        return write(path, 9, **kinds)
    with StoreWriter(path, info=INFO, shard_bytes=3000) as writer:
        for sample in range(9):
            batch = batch_of(sample)
            batch.target = batch.x * 3 + 1
            writer.add(batch)
    return path


@pytest.mark.parametrize(
    "kinds",
    [{}, {"conditioned": False}, {"paired": False}, {"targets": True}],
    ids=["paired", "without conditioning", "without pairs", "with targets"],
)
@pytest.mark.parametrize("start", [0, 5])
def test_parts_of_batches_are_those_of_the_whole_ones(tmp_path, kinds, start):
    """Through the end of two epochs: one has 360 rows, 7.5 batches; with the timesteps of the whole batch."""
    store = ActivationStore(store_of(tmp_path / "s", **kinds))
    options: dict[str, Any] = {"seed": 3, "epochs": None, "buffer_rows": 1024, "start": start}
    parts = [store.batches(ROWS, **options, part=part) for part in PARTS]
    for whole in islice(store.batches(ROWS, **options), STEPS):
        for part, found in zip(PARTS, map(next, parts), strict=True):
            expected = whole.merged().take(part)
            assert found.paired is expected.paired
            for name in NAMES:
                one, other = getattr(expected, name), getattr(found, name)
                assert one is other is None or torch.equal(one, other), name


class _Counted:
    """An open shard, or a tensor of it, that adds up the bytes that are read of each tensor."""

    def __init__(self, of: Any, read: Counter[str], name: str = "") -> None:
        self.of, self.read, self.name = of, read, name

    def get_tensor(self, name: str) -> _Counted:
        return _Counted(self.of.get_tensor(name), self.read, name)

    def get_slice(self, name: str) -> _Counted:
        return _Counted(self.of.get_slice(name), self.read, name)

    def __getitem__(self, rows: Any) -> torch.Tensor:
        found = self.of[rows]
        self.read[self.name] += found.nbytes
        return found


def test_a_rank_reads_the_activations_of_its_own_rows_alone(tmp_path, monkeypatch):
    store, read = ActivationStore(store_of(tmp_path / "s", targets=True)), Counter[str]()
    opened = store._file
    monkeypatch.setattr(store, "_file", lambda index: _Counted(opened(index), read))
    batches = store.batches(ROWS, epochs=None, buffer_rows=1024, part=PARTS[1])
    for _ in range(STEPS):
        next(batches)
    of_a_row = 3 * 4
    assert read["x"] == read["target"] == STEPS * ROWS // RANKS * of_a_row
    assert read["group"] >= STEPS * ROWS * 4  # every rank knows where each row stands


def test_shards_are_verified_by_one_process_each(tmp_path):
    path = write(tmp_path / "s", 9)
    damaged = path / "shard-00004.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    store = ActivationStore(path)
    assert len(store.shards) == 5
    store.verify((0, 3))
    store.verify((2, 3))
    for share in ((1, 3), (0, 1)):
        with pytest.raises(TideError, match=r"shard-00004\.safetensors is not the shard that the manifest lists"):
            store.verify(share)

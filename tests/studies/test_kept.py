"""Tensors that processes share: made once, and only read for the same configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tide.errors import TideError
from tide.studies.bench import Bench
from tide.studies.kept import kept


def test_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": torch.arange(3.0)}

    path = tmp_path / "data" / "x.safetensors"
    for _ in range(2):
        assert torch.equal(kept(path, {"images": 2}, make)["x"], torch.arange(3.0))
    assert made == [1]
    with pytest.raises(TideError, match=r"x\.safetensors was made with other options \(images 2, now 3\)"):
        kept(path, {"images": 3}, make)
    path.write_bytes(b"text")
    with pytest.raises(TideError, match="not a readable safetensors file"):
        kept(path, {"images": 2}, make)


def test_a_bench_reads_what_another_has_collected(bench: Bench, tmp_path):
    first = Bench(bench.sizes, adapter=bench.adapter, folder=tmp_path)
    again = replace(first, _loss_data={}, _unedited={})
    assert torch.equal(first.train.all.x, bench.train.all.x)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert set(written) == {"training-tokens.safetensors"}
    for pool in (first.train, again.train):
        one, other = next(pool.from_step(3)), next(bench.train.from_step(3))
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.timestep[one.group.long()], other.timestep[other.group.long()])
        assert one.paired
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")} == written

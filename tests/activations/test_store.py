"""The activation store: whole at any moment, refusing in time, read back shuffled and bit for bit."""

from __future__ import annotations

import errno
import json
import pickle
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import tide.activations.writer as writer_module
from tests.helpers.store_batches import INFO, batch_of, check_rows, edit_manifest, write
from tide.activations.batch import ActivationBatch
from tide.activations.collect import collect, prepare
from tide.activations.store import ActivationStore
from tide.activations.writer import StoreWriter, estimate_bytes
from tide.adapters import adapter_for
from tide.errors import TideError


def rows_of(batches) -> torch.Tensor:
    """All rows, sorted, to compare as a set."""
    return torch.cat([batch.x for batch in batches]).unique(dim=0)


@pytest.fixture
def filled(tmp_path):
    return write(tmp_path / "store")


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_round_trip(tmp_path, paired, conditioned):
    store = ActivationStore(write(tmp_path / "s", paired=paired, conditioned=conditioned))
    assert (len(store), store.d_model, store.paired, store.complete, store.info) == (
        240,
        3,
        paired,
        True,
        INFO,
    )
    assert len(store.shards) == 3  # two batches a shard
    whole = ActivationBatch.cat([store.read(i) for i in range(3)])
    check_rows(whole)
    assert torch.equal(whole.x, torch.cat([batch_of(i).x for i in range(6)]))
    batches = list(store.batches(16, seed=1))
    for batch in batches:
        check_rows(batch)
        assert batch.paired is paired
        assert (batch.conditioning is not None) == conditioned
        assert len(batch.timestep) == len(batch.group.unique())
    assert [len(batch) for batch in batches] == [16] * 15
    assert torch.equal(rows_of(batches), rows_of([whole]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_come_back(tmp_path, dtype):
    x = torch.randn(40, 3).to(dtype)
    with StoreWriter(tmp_path / "s") as writer:
        writer.add(batch_of(0, x=x))
    assert torch.equal(ActivationStore(tmp_path / "s").read(0).x, x)


def test_targets_are_kept_beside_x(tmp_path):
    with StoreWriter(tmp_path / "s", info=INFO, shard_bytes=3000) as writer:
        for sample in range(6):
            batch = batch_of(sample)
            writer.add(replace(batch, target=2 * batch.x))
    store = ActivationStore(tmp_path / "s")
    store.verify()
    assert store.manifest["target"]
    assert len(store.shards) > 3  # a row takes nearly twice the bytes
    for batch in store.batches(16, seed=1):
        check_rows(batch)
        assert torch.equal(batch.target, 2 * batch.x)


@pytest.mark.parametrize("recorded", [True, False], ids=["", "written by an earlier version"])
def test_rows_with_and_without_targets_do_not_mix(filled, recorded):
    if not recorded:
        edit_manifest(filled, lambda manifest: manifest.pop("target"))
    assert ActivationStore(filled).read(0).target is None
    with StoreWriter(filled, info=INFO, resume=True) as writer:
        batch = batch_of(6)
        with pytest.raises(TideError, match="holds activations with target False and not True; choose another folder"):
            writer.add(replace(batch, target=batch.x))


def test_layout(filled):
    names = sorted(path.name for path in filled.iterdir())
    assert names == ["manifest.json", *(f"shard-{i:05d}.safetensors" for i in range(3))]
    with safe_open(filled / "shard-00001.safetensors", "pt") as file:
        assert set(file.keys()) == {"x", "sample", "token", "timestep", "group", "conditioning"}
        assert file.get_tensor("conditioning").shape == (4, 2)
        assert file.get_tensor("group").dtype == torch.int32
    manifest = json.loads((filled / "manifest.json").read_text())
    assert (manifest["rows"], manifest["next_sample"], manifest["complete"]) == (240, 6, True)
    for shard in manifest["shards"]:
        assert (filled / shard["file"]).stat().st_size == shard["bytes"]


def test_a_batch_over_the_shard_size_is_one_shard(tmp_path):
    store = ActivationStore(write(tmp_path / "s", 2, shard_bytes=10))
    assert [shard["rows"] for shard in store.shards] == [40, 40]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """4 shards of 5 chunks each, the last chunk of a shard smaller."""
    return ActivationStore(write(tmp_path_factory.mktemp("large") / "s", 40, n=500, shard_bytes=150_000))


def test_shuffles_across_shards(large):
    assert len(large.shards) == 4
    batches = list(large.batches(400, buffer_rows=4096))
    assert sum(map(len, batches)) == len(large) == 20_000
    # A buffer of 4 chunks of about 2 samples each.
    assert all(len(batch.sample.unique()) >= 5 for batch in batches[:10])
    first = batches[0].x
    assert not torch.equal(first, first.sort(0).values)


def test_order_depends_on_seed_and_epoch(large):
    def take(n, **kwargs):
        batches = large.batches(400, buffer_rows=4096, **kwargs)
        return [next(batches).x for _ in range(n)]

    assert all(torch.equal(a, b) for a, b in zip(take(3, seed=1), take(3, seed=1), strict=True))
    assert not torch.equal(take(1, seed=1)[0], take(1, seed=2)[0])
    two_epochs = take(100, epochs=None)
    assert not torch.equal(two_epochs[0], two_epochs[50])
    assert torch.equal(torch.cat(two_epochs[:50]).unique(dim=0), torch.cat(two_epochs[50:]).unique(dim=0))


@settings(max_examples=12, deadline=None)
@given(batch=st.integers(1, 5000), buffer=st.sampled_from([1024, 3000, 4096, 10**6]), start=st.integers(0, 60))
def test_start_is_the_whole_state(large, batch, buffer, start):
    """Batch b is the same whether the reader began at 0 or at b, also past the end of an epoch."""
    size = 2 * batch
    start %= 2 * len(large) // size + 1
    everything = list(large.batches(size, epochs=2, buffer_rows=buffer, seed=3))
    resumed = list(large.batches(size, epochs=2, buffer_rows=buffer, seed=3, start=start))
    assert sum(map(len, everything)) == 2 * len(large)
    assert all(len(b) == size for b in everything[:-1])
    assert len(resumed) == len(everything) - start
    for one, other in zip(resumed, everything[start:], strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.timestep[one.group.long()], other.timestep[other.group.long()])


def test_bad_batch_sizes(filled):
    store = ActivationStore(filled)
    for size, kwargs, match in [
        (3, {}, "is not even"),
        (0, {}, "batch_size 0"),
        (2, {"buffer_rows": 5}, "buffer_rows 5"),
    ]:
        with pytest.raises(TideError, match=match):
            next(store.batches(size, **kwargs))


def test_an_interrupted_collection_is_readable_and_resumes(tmp_path):
    path = tmp_path / "s"

    def interrupted():
        with StoreWriter(path, info=INFO, shard_bytes=3000) as writer:
            for sample in range(6):
                if sample == 5:
                    raise KeyboardInterrupt
                writer.add(batch_of(sample))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    store = ActivationStore(path)
    assert (len(store), store.complete) == (160, False)
    left = path / ".shard-00002.safetensors.1234-ab.tmp" / "shard-00002.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    (path / "shard-00002.safetensors").write_bytes(b"whole, yet not in the manifest when power went")
    with StoreWriter(path, info=INFO, shard_bytes=3000, resume=True) as writer:
        assert writer.next_sample == 4
        assert writer.rows == 160
        for sample in range(writer.next_sample, 6):
            writer.add(batch_of(sample))
    store = ActivationStore(path)
    assert store.complete
    assert torch.equal(rows_of(store.batches(40)), rows_of(batch_of(i) for i in range(6)))
    assert not list(path.glob(".*"))


def test_a_resumed_collection_equals_an_uninterrupted_one(alpha, tmp_path):
    adapter = adapter_for(alpha)
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    data = list(prepare(adapter, [(images, ["a tree"] * 4)], max_sequence_length=20))

    def run(path, n_batches, resume):
        with StoreWriter(path, info=INFO, shard_bytes=1, resume=resume) as writer:
            batches = collect(adapter, data, [3], batch_size=1, start=writer.next_sample)
            for _, batch in zip(range(n_batches), batches, strict=False):
                writer.add(batch[3])

    run(tmp_path / "one", 4, False)
    run(tmp_path / "two", 2, False)
    run(tmp_path / "two", 4, True)
    one, two = ActivationStore(tmp_path / "one"), ActivationStore(tmp_path / "two")
    for i in range(4):
        assert torch.equal(one.read(i).x, two.read(i).x)


def test_refuses_to_mix(filled):
    with pytest.raises(TideError, match="already holds activations; resume"):
        StoreWriter(filled)
    with pytest.raises(TideError, match=r"with other options \(block 6, now 2\); use the same options or another"):
        StoreWriter(filled, info={"block": 2}, resume=True)
    writer = StoreWriter(filled, resume=True)
    for batch, match in [
        (batch_of(7, x=torch.zeros(40, 5)), "d_model 3 and not 5"),
        (batch_of(7, x=torch.zeros(40, 3, dtype=torch.bfloat16)), "dtype float32 and not bfloat16"),
        (batch_of(7, paired=False), "paired True and not False"),
        (batch_of(7, conditioned=False), "d_conditioning 2 and not 0"),
    ]:
        with pytest.raises(TideError, match=match):
            writer.add(batch)


def test_estimate_is_the_size_on_disk(alpha, tmp_path):
    adapter = adapter_for(alpha)
    data = [(torch.zeros(9, 4, 16, 16), ["a tree"] * 9)]
    for paired, fraction in [(True, 1 / 16), (False, 0.5)]:
        path = tmp_path / f"{paired}"
        with StoreWriter(path) as writer:
            for batch in collect(adapter, data, [0], paired=paired, token_fraction=fraction, dtype=torch.bfloat16):
                writer.add(batch[0])
        size = (path / "shard-00000.safetensors").stat().st_size
        estimate = estimate_bytes(9, 64, 192, paired=paired, token_fraction=fraction)
        assert estimate <= size <= estimate + 1000


def test_estimate_of_pixart_1024():
    """47 GB for 80,000 images at 1/16 of 4096 tokens of width 1152, one timestep each."""
    n = estimate_bytes(80_000, 4096, 1152, paired=False)
    assert 47e9 < n < 48e9


def test_refuses_what_exceeds_the_quota_before_anything_is_written(tmp_path):
    with pytest.raises(TideError, match=r"^10 MB of activations are expected and .* may take 1 MB"):
        StoreWriter(tmp_path / "s", expected_bytes=10_000_000, quota=1_000_000)
    assert not (tmp_path / "s").exists()


def test_refuses_what_exceeds_the_disk(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer_module.shutil, "disk_usage", lambda path: usage(10**9, 0, 5 * 10**6))
    with pytest.raises(TideError, match=r"has 5 MB free; free some space"):
        StoreWriter(tmp_path / "deep" / "er" / "s", expected_bytes=10**7)
    assert not (tmp_path / "deep").exists()


def test_stops_at_the_quota_and_keeps_what_it_has(tmp_path):
    with pytest.raises(TideError, match="raise the quota"):
        write(tmp_path / "s", quota=7000)
    store = ActivationStore(tmp_path / "s")
    assert not store.complete
    assert sum(path.stat().st_size for path in store.path.glob("shard*")) <= 7000
    assert len(store) == 160
    with pytest.raises(TideError, match="raise the quota"):
        write(tmp_path / "s", quota=7000, resume=True, start=4)
    write(tmp_path / "s", quota=20_000, resume=True, start=4)
    assert len(ActivationStore(tmp_path / "s")) == 240


@pytest.mark.parametrize("what", ["shard", "manifest"])
def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch, what):
    path = tmp_path / "s"

    def full(*args, **kwargs):
        target = next(arg for arg in args if isinstance(arg, Path))
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill_up() -> None:
        with StoreWriter(path, shard_bytes=1) as writer:
            writer.add(batch_of(0))
            writer.add(batch_of(1))  # writes the first
            if what == "shard":
                monkeypatch.setattr("tide.files.tensors.save_file", full)
            else:
                monkeypatch.setattr(Path, "write_text", full)
            writer.add(batch_of(2))

    with pytest.raises(TideError, match=r"could not be written .*No space left on device.*; free some space") as error:
        fill_up()
    assert "\n" not in str(error.value)
    assert not list(path.glob(".*"))
    store = ActivationStore(path)
    assert len(store) == 40
    check_rows(store.read(0))
    monkeypatch.undo()
    with StoreWriter(path, shard_bytes=1, resume=True) as again:
        again.add(batch_of(again.next_sample))
    assert ActivationStore(path).read(1).sample.unique().tolist() == [1]


def test_truncated_shard(filled):
    shard = filled / "shard-00001.safetensors"
    for size in (shard.stat().st_size - 1, 100, 4, 0):
        shard.write_bytes(shard.read_bytes()[:size])
        with pytest.raises(TideError, match=r"shard-00001\.safetensors is not a readable safetensors file \(truncated"):
            ActivationStore(filled)


class Trap:
    """Unpickling this would fail the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_pickles_are_refused(filled, form):
    shard = filled / "shard-00000.safetensors"
    if form == "pickle":
        shard.write_bytes(pickle.dumps(Trap()))
    else:
        torch.save({"x": torch.zeros(3), "trap": Trap()}, shard)
    with pytest.raises(TideError, match="a pickle, which is never loaded"):
        ActivationStore(filled)


def test_foreign_and_missing_shards(filled):
    shard = filled / "shard-00000.safetensors"
    save_file({"x": torch.zeros(80, 3)}, shard)
    with pytest.raises(TideError, match="a safetensors file of another kind"):
        ActivationStore(filled)
    (filled / "shard-00001.safetensors").replace(shard)
    with pytest.raises(TideError, match=r"the manifest lists \(samples 2\.\.3, not 0\.\.1\); run `tide collect --r"):
        ActivationStore(filled)
    write(filled.parent / "other", 1)
    (filled.parent / "other" / "shard-00000.safetensors").replace(shard)
    with pytest.raises(TideError, match=r"is not the shard that the manifest lists \(1\d+ bytes, not 2\d+\)"):
        ActivationStore(filled)
    shard.unlink()
    with pytest.raises(TideError, match=r"shard-00000\.safetensors does not exist; run "):
        ActivationStore(filled)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not of the format"),
        ('{"format": "other/1"}', "is not of the format"),
        ('{"format": "tide-activations/1", "shards": []}', "complete is missing"),
    ],
)
def test_faulty_manifest(filled, text, match):
    (filled / "manifest.json").write_text(text)
    with pytest.raises(TideError, match=match):
        ActivationStore(filled)


def test_no_store(tmp_path):
    with pytest.raises(TideError, match=r"holds no manifest\.json"):
        ActivationStore(tmp_path)
    StoreWriter(tmp_path / "s").close()
    with pytest.raises(TideError, match="holds no activations yet"):
        ActivationStore(tmp_path / "s")

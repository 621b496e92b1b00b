"""Where batches come from: stores or memory; the fresh model and the description beside them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.helpers.trainings import digests
from tide.activations import ActivationBatch, ActivationStore, StoreWriter, collect
from tide.activations.memory import ActivationPool
from tide.activations.options import CollectOptions
from tide.activations.source import Source
from tide.activations.to_disk import collect_to_disk, expected_bytes
from tide.adapters import Adapter, adapter_for
from tide.data import open_source
from tide.errors import TideError
from tide.files import read_json, write_json
from tide.fingerprint import fingerprint, pipeline_fingerprints
from tide.images.trained import TrainedOn
from tide.training import (
    TrainConfig,
    build_model,
    from_block_stores,
    from_pool,
    from_stores,
    live,
    live_blocks,
    sources,
)
from tide.world import World

N = 10
OPTIONS = CollectOptions(token_fraction=1 / 4)
CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=4)
PLAIN = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=4, modulation=False)


@pytest.fixture(scope="module")
def source(adapter) -> Source:
    return open_source("scenes", adapter, images=N)


@pytest.fixture(scope="module")
def stores(adapter, source, tmp_path_factory) -> Path:
    """Of blocks 3 and 6."""
    path = tmp_path_factory.mktemp("stores")
    collect_to_disk(adapter, source, path, blocks=(3, 6), options=OPTIONS)
    return path


def changed(store: Path, to: Path, **info: object) -> Path:
    """A copy of a store that says something else of itself."""
    to.mkdir()
    for file in store.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    manifest = read_json(to / "manifest.json")
    write_json(to / "manifest.json", {**manifest, "info": {**manifest["info"], **info}})
    return to


# -- stores ----------------------------------------------------------------------------------------------------------


def test_a_tide_from_stores_starts_from_the_pipeline_that_they_name(adapter, stores, tmp_path):
    path = changed(stores / "block-3", tmp_path / "s", pipeline="some/model")
    named = []
    job = from_stores([path], CONFIG, open_pipeline=lambda name: named.append(name) or adapter, buffer_rows=1024)
    assert named == ["some/model"]
    assert fingerprint([job.model]) == fingerprint([build_model(adapter, 3, CONFIG)])
    assert (job.model.config.block, job.model.config.family) == (3, "pixart")
    store = ActivationStore(path)
    about = {"rows": len(store), "fingerprint": store.fingerprint}
    assert job.described == {"stores": [about], "buffer_rows": 1024}
    assert job.data == {"name": "scenes", "stores": [{"folder": str(path), **about}]}
    assert job.weights == pipeline_fingerprints(adapter.pipe)
    batches = store.batches(64, seed=0, epochs=None, buffer_rows=1024, start=2)
    assert torch.equal(next(job.batches(2)).x, next(batches).x)


def test_a_checkpoint_of_stores_records_their_images(adapter, source, stores, tmp_path):
    other = open_source("scenes", adapter, images=3, seed=1)
    collect_to_disk(adapter, other, tmp_path / "other", blocks=(3,), options=OPTIONS)
    photos = changed(tmp_path / "other", tmp_path / "photos", data="photos", hold_out=0.1)
    job = from_stores([stores / "block-3", photos], PLAIN)
    assert job.model.trained_on == TrainedOn(("scenes", "photos"), digests(source) | digests(other), 0.0)
    assert from_stores([photos], PLAIN).model.trained_on == TrainedOn(("photos",), digests(other), 0.1)


def test_a_store_without_a_record_of_its_images_gives_none(stores, tmp_path):
    info = ActivationStore(stores / "block-3").info
    with StoreWriter(tmp_path / "old", info=info) as writer:
        writer.add(ActivationStore(stores / "block-3").read(0))
        writer.flush()
    assert from_stores([tmp_path / "old"], PLAIN).model.trained_on is None


@pytest.mark.parametrize(("digests_of", "recorded"), [({}, False), ({"digests": "files or pixels"}, True)])
def test_digests_of_resized_images_identify_nothing(stores, tmp_path, digests_of, recorded):
    """Stores of named data sets that earlier versions wrote hold such digests."""
    path = changed(stores / "block-3", tmp_path / "s", data="owner/pictures", split="train", **digests_of)
    assert (from_stores([path], PLAIN).model.trained_on is not None) is recorded


@pytest.mark.parametrize(
    ("local", "share"),
    [({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, (1, 2)), ({"LOCAL_RANK": "1"}, (0, 1)), ({}, (0, 1))],
    ids=["one of two on this machine", "of an unknown number", "of an unknown place"],
)
def test_the_ranks_of_a_machine_divide_the_shards_that_they_verify(stores, monkeypatch, local, share):
    verified = []
    monkeypatch.setattr(ActivationStore, "verify", lambda store, share: verified.append(share))
    monkeypatch.setattr(sources, "current", lambda *_: World(3, 4))
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", **local}.items():
        monkeypatch.setenv(name, value)
    job = from_stores([stores / "block-3"], PLAIN)
    assert verified == [share]
    assert len(next(job.batches(0))) == 64 // 4


def test_one_folder_is_one_store(stores):
    for path in (stores / "block-3", str(stores / "block-3")):
        assert len(from_stores(path, PLAIN).data["stores"]) == 1
    with pytest.raises(TideError, match="no store is given; give at least one folder"):
        from_stores([], PLAIN)


def test_a_plain_sae_opens_no_pipeline(stores):
    job = from_stores([stores / "block-3"], PLAIN)
    assert job.model.modulation is None
    assert (job.model.n_latents, job.model.config.k, job.model.config.block) == (96, 8, 3)
    with pytest.raises(TideError, match=r"copies its modulation from the pipeline of .*block-3; give open_pipeline"):
        from_stores([stores / "block-3"], CONFIG)


def test_stores_that_do_not_fit(adapter, alpha_with_sizes, stores, tmp_path):
    with pytest.raises(TideError, match=r"block-6 is of block 6 and .*block-3 of 3; train on stores of one block"):
        from_stores([stores / "block-3", stores / "block-6"], PLAIN)
    with pytest.raises(TideError, match=r"holds stores of several blocks; give one of them: .*block-3$"):
        from_stores([stores], PLAIN)
    with pytest.raises(TideError, match=r"block-3 is of width 192 and the pipeline of 48; use its own pipeline"):
        from_stores([stores / "block-3"], CONFIG, open_pipeline=lambda name: adapter_for(alpha_with_sizes))
    flux = changed(stores / "block-3", tmp_path / "s", family="flux")
    with pytest.raises(TideError, match=r"s is of family flux and the pipeline of pixart; use its own pipeline"):
        from_stores([flux], CONFIG, open_pipeline=lambda name: adapter)


def test_a_damaged_store_is_found_first(stores, tmp_path):
    path = changed(stores / "block-3", tmp_path / "s")
    content = bytearray((path / "shard-00000.safetensors").read_bytes())
    content[-3] ^= 4
    (path / "shard-00000.safetensors").write_bytes(content)
    with pytest.raises(TideError, match="another SHA-256"):
        from_stores([path], PLAIN)


@pytest.mark.parametrize("blocks", [None, [6]], ids=["all that are there", "one of them"])
def test_stores_of_several_blocks_are_read_in_turn(stores, blocks):
    jobs = from_block_stores(stores, PLAIN, blocks=blocks, buffer_rows=1024)
    assert list(jobs.of) == (blocks or [3, 6])
    for block, job in jobs.of.items():
        alone = from_stores(stores / f"block-{block}", PLAIN, buffer_rows=1024)
        assert alone.described == job.described
        for together, own in zip(islice(jobs.batches(2), 3), alone.batches(2), strict=False):
            assert torch.equal(together[block].x, own.x)


def test_a_folder_without_the_store_of_a_block(stores, tmp_path):
    with pytest.raises(TideError, match=r"holds no store of block 5; its blocks are 3, 6$"):
        from_block_stores(stores, PLAIN, blocks=[5, 6])
    with pytest.raises(TideError, match=r"holds no store of block 3; its blocks are none$"):
        from_block_stores([stores, tmp_path], PLAIN)


# -- memory ----------------------------------------------------------------------------------------------------------


def collected(adapter: Adapter, source: Source) -> list[ActivationBatch]:
    return [each[3] for each in collect(adapter, source, [3], token_fraction=1 / 4)]


def test_from_a_pool(adapter, source):
    batches = collected(adapter, source)
    job = from_pool(batches, adapter, CONFIG, block=3)
    pool = ActivationPool(batches, 64, seed=0)
    assert torch.equal(next(job.batches(3)).x, next(pool.from_step(3)).x)
    assert fingerprint([job.model]) == fingerprint([build_model(adapter, 3, CONFIG)])
    assert job.described["rows"] == len(pool) == N * 2 * 16
    assert job.data == job.described
    assert job.weights == pipeline_fingerprints(adapter.pipe)
    named = from_pool(batches, adapter, CONFIG, block=3, source=source)
    assert (named.data, named.described) == ({"name": "scenes", **job.described}, job.described)
    assert job.model.trained_on is None
    assert named.model.trained_on == TrainedOn(("scenes",), digests(source))
    again = from_pool((batch.to(dtype=torch.bfloat16) for batch in batches), adapter, CONFIG, block=3)
    assert again.described["fingerprint"] != job.described["fingerprint"]


def test_a_pool_records_the_images_that_it_holds(adapter):
    """Whatever else of the source was read."""
    images = open_source("scenes", adapter, images=4)
    batches = collected(adapter, images)
    every = digests(images)
    assert from_pool(batches[:1], adapter, CONFIG, block=3, source=images).model.trained_on.images == every
    images.samples_before(2)
    with pytest.raises(TideError, match=r"are of 4 images and scenes was read since, 2 images of it; call from_pool"):
        from_pool(batches, adapter, CONFIG, block=3, source=images)


# -- transcoders -----------------------------------------------------------------------------------------------------

PAIRS = CollectOptions(token_fraction=1 / 4, tensor="feed_forward_input", target="feed_forward")


@pytest.fixture(scope="module")
def pairs(adapter, source, tmp_path_factory) -> Path:
    """A store of block 3's feed-forward."""
    path = tmp_path_factory.mktemp("pairs") / "store"
    collect_to_disk(adapter, source, path, blocks=(3,), options=PAIRS)
    return path


def test_a_transcoder_from_every_source(adapter, source, pairs):
    """Each gives the model its target and batches of pairs; what describes the data names it."""
    passes = (each[3] for each in collect(adapter, source, [3], PAIRS))
    jobs = [
        from_stores(pairs, CONFIG, open_pipeline=lambda name: adapter),
        from_stores(pairs, PLAIN),
        from_pool(passes, adapter, CONFIG, block=3, tensor=PAIRS.tensor, target=PAIRS.target),
        live(adapter, source, CONFIG, block=3, options=PAIRS, buffer_rows=1024),
    ]
    ff = adapter.hook_module(3, "feed_forward")
    for job in jobs:
        assert (job.model.config.tensor, job.model.config.target) == (PAIRS.tensor, PAIRS.target)
        batch = next(job.batches(1))
        with torch.no_grad():
            torch.testing.assert_close(ff(batch.x), batch.target, rtol=1e-4, atol=1e-5)
    assert jobs[-1].described["target"] == "feed_forward"
    assert "target" in jobs[2].described


def test_transcoders_of_several_blocks(adapter, source, tmp_path):
    """Of one stream, and of stores in parts: each block has its own module's pairs."""
    for index in range(2):
        collect_to_disk(adapter, source, tmp_path, blocks=(3, 6), options=PAIRS, part=(index, 2))
    for jobs in (
        live_blocks(adapter, source, CONFIG, blocks=[3, 6], options=PAIRS, buffer_rows=100),
        from_block_stores(tmp_path, PLAIN, buffer_rows=1024),
    ):
        assert [job.model.config.target for job in jobs.of.values()] == ["feed_forward"] * 2
        for block, batch in next(jobs.batches(1)).items():
            with torch.no_grad():
                found = adapter.hook_module(block, "feed_forward")(batch.x)
            torch.testing.assert_close(found, batch.target, rtol=1e-4, atol=1e-5)


def test_stores_of_a_transcoder_and_of_an_autoencoder_are_not_mixed(stores, pairs, tmp_path):
    with pytest.raises(TideError, match=r"is of tensor 'feed_forward_input' and .* of 'output'; train on sto"):
        from_stores([stores / "block-3", pairs], PLAIN)
    false = changed(pairs, tmp_path / "false", target=None, tensor="feed_forward")
    with pytest.raises(TideError, match=r"^.*/false does not hold the targets that its info names; collect it again$"):
        from_stores(false, PLAIN)


def test_a_store_of_pairs_is_announced_at_its_size(adapter, source, pairs):
    size = sum(file.stat().st_size for file in pairs.glob("shard-*"))
    assert size == pytest.approx(expected_bytes(adapter, source, PAIRS), rel=0.02)

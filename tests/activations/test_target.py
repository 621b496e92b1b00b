"""Stores that are written to URLs: equal to those on a disk, whole at any moment, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.remote import URL, Troubled, fetched_shards, start
from tests.helpers.store_batches import contents, go_on
from tide.activations import ActivationBatch, ActivationStore, CollectOptions, Source, StoreWriter, collect_to_disk
from tide.data import open_source
from tide.errors import TideError
from tide.files.cache import staging_folder
from tide.files.remote import RemotePath
from tide.runs import contents as run_contents
from tide.training import TrainConfig, from_stores

OPTIONS = CollectOptions(token_fraction=1 / 4, batch_size=2)
PLAIN = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=4, modulation=False)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    return start(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def source(adapter) -> Source:
    return open_source("scenes", adapter, images=6, batch_size=2)


def remote_contents(url: str, to: Path) -> dict[str, str]:
    """Name -> digest of every file at a URL."""
    Troubled().get(url.replace("troubled:/", ""), str(to), recursive=True)
    return contents(to)


def rows(store: ActivationStore) -> torch.Tensor:
    return ActivationBatch.cat([store.read(i) for i in range(len(store.shards))]).x


# -- collecting ------------------------------------------------------------------------------------------------------


@pytest.fixture
def collected(adapter, source, tmp_path) -> Callable[..., Path | str]:
    """Collects the activations of block 3 into a store."""

    def collect(out: Path | str, **further) -> Path | str:
        given = {"blocks": (3,), "options": OPTIONS, "say": lambda text: None, **further}
        collect_to_disk(adapter, given.pop("source", source), out, **given)
        return out

    return collect


def same_but_run(url: str, path: Path, to: Path) -> bool:
    """Whether all files are equal; ``run.json`` names the folder."""
    found, wanted = remote_contents(url, to), contents(path)
    assert found.pop("run.json") != ""
    wanted.pop("run.json")
    return found == wanted


def test_what_is_collected_to_a_url_is_what_a_disk_would_hold(collected, tmp_path, cache):
    collected(URL)
    collected(tmp_path / "one")
    assert same_but_run(URL, tmp_path / "one", tmp_path / "back")
    holds = run_contents(RemotePath(URL))
    assert holds is not None
    assert holds.measured == run_contents(tmp_path / "one").measured
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    assert not staging_folder(RemotePath(URL)).exists()
    with pytest.raises(TideError, match=rf"^{URL} already holds activations; resume, or choose another folder"):
        collected(URL)


def test_shards_arrive_before_the_manifest_lists_them(collected):
    collected(URL)
    puts = [call.rpartition("/")[2] for call in Troubled.calls if call.startswith("put ")]
    assert [name for name in puts if name != "run.json"] == [
        "samples-00000.json",
        "shard-00000.safetensors",
        "manifest.json",
        "manifest.json",
    ]


def test_a_collection_to_a_url_is_extended(adapter, collected, tmp_path):
    fewer = open_source("scenes", adapter, images=3, batch_size=2)
    collected(URL, source=fewer)
    Troubled.calls.clear()
    collected(URL, resume=True)
    assert fetched_shards() == []
    collected(tmp_path / "one")
    assert torch.equal(rows(ActivationStore(URL)), rows(ActivationStore(tmp_path / "one")))
    with pytest.raises(TideError, match=rf"^{URL} was collected with other options \(seed 0, now 1\)"):
        collected(URL, resume=True, seed=1)


def test_several_blocks_and_parts_at_a_url(collected, tmp_path, source, adapter):
    for index in (0, 1):
        collected(URL, blocks=(1, 3), part=(index, 2))
    collected(tmp_path / "one")
    assert torch.equal(rows(ActivationStore(f"{URL}/block-3")), rows(ActivationStore(tmp_path / "one")))
    with pytest.raises(TideError, match=rf"holds stores of several blocks; give one of them: {URL}/block-1$"):
        from_stores(URL, PLAIN)
    Troubled().rm("/bucket/acts/block-3/part-00001-of-00002", recursive=True)
    with pytest.raises(TideError, match=rf"^{URL}/block-3 is not whole: part 1 of 2 is missing or unfinished"):
        ActivationStore(f"{URL}/block-3")


def test_a_training_from_a_url_is_that_from_the_disk(collected, tmp_path):
    job = from_stores(collected(URL), PLAIN)
    own = from_stores(collected(tmp_path / "one"), PLAIN)
    assert (job.described, job.model.trained_on) == (own.described, own.model.trained_on)
    assert job.data["stores"][0]["folder"] == URL
    assert torch.equal(next(job.batches(2)).x, next(own.batches(2)).x)


# -- interruptions ---------------------------------------------------------------------------------------------------


def test_after_a_broken_upload_what_is_listed_is_whole_and_the_rest_is_resumed(local, tmp_path):
    uploads = [0]

    def third(call: str) -> bool:
        uploads[0] += "shard" in call and call.startswith("put ")
        return uploads[0] >= 3

    Troubled.when = third
    Troubled.errors[:] = [ConnectionError("reset")] * 4
    with pytest.raises(TideError) as error:
        go_on(URL)
    assert str(error.value) == f"{URL}/shard-00002.safetensors cannot be written (reset); try again later"
    assert not staging_folder(RemotePath(URL)).exists()
    begun = ActivationStore(URL)
    begun.verify()
    assert (len(begun.shards), begun.complete) == (2, False)
    go_on(URL)
    assert remote_contents(URL, tmp_path / "back") == contents(local)


def test_what_a_kill_left_in_the_local_folder_is_removed(local, tmp_path):
    staging = staging_folder(RemotePath(URL))
    staging.mkdir(parents=True)
    (staging / "shard-00000.safetensors").write_bytes(b"half")
    (staging / "manifest.json").write_bytes(b"{")
    go_on(URL)
    assert remote_contents(URL, tmp_path / "back") == contents(local)
    assert not staging.exists()


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_shard_that_is_gone_is_collected_again(store, local, tmp_path, damage):
    Troubled().rm_file("/bucket/acts/shard-00001.safetensors")
    if damage == "truncated":
        Troubled().pipe_file("/bucket/acts/shard-00001.safetensors", b"half")
    writer = go_on(URL)
    assert writer.n_written == 1
    assert remote_contents(URL, tmp_path / "back") == contents(local)


def test_two_writers_of_this_machine_are_refused():
    with StoreWriter(URL), pytest.raises(TideError, match="is being written by this process already"):
        StoreWriter(URL)


def test_the_quota_counts_what_was_uploaded(store):
    with pytest.raises(TideError, match=rf"and {URL} may take 8 KB, "):
        go_on(URL, 20, quota=8000)

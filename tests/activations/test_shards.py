"""Shards at a URL: fetched when they are used, checked, and equal to those on a disk."""

from __future__ import annotations

import pickle
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

from tests.helpers.remote import URL, Troubled, fetched_shards, start
from tide.activations import ActivationBatch, ActivationStore
from tide.errors import TideError, TideWarning


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    return start(monkeypatch, tmp_path)


def rows(store: ActivationStore) -> torch.Tensor:
    return ActivationBatch.cat([store.read(i) for i in range(len(store.shards))]).x


def test_a_store_at_a_url_is_that_on_the_disk(store, local):
    own = ActivationStore(local)
    assert (len(store), store.complete, store.info) == (len(own), True, own.info)
    assert (store.fingerprint, store.samples()) == (own.fingerprint, own.samples())
    assert torch.equal(rows(store), rows(own))
    for found, wanted in zip(store.batches(16, seed=3), own.batches(16, seed=3), strict=True):
        assert torch.equal(found.x, wanted.x)
    store.verify()


def test_a_shard_is_fetched_when_it_is_first_used(store):
    store.samples()
    assert fetched_shards() == []
    for _ in range(2):
        store.read(1, 0, 4)
        pickle.loads(pickle.dumps(store)).read(1, 0, 4)
    assert fetched_shards() == ["shard-00001.safetensors"]


def test_a_url_of_a_file_is_a_local_path(local, cache):
    store = ActivationStore(f"file://{local}")
    assert store.path == local
    store.verify()
    assert not cache.exists()


def test_what_is_not_there():
    for url in (URL, "troubled://none"):
        with pytest.raises(TideError) as error:
            ActivationStore(url)
        assert str(error.value) == f"{url} holds no manifest.json; give the folder of an activation store"


def test_a_shard_that_is_not_the_listed_one(store, local):
    content = bytearray((local / "shard-00001.safetensors").read_bytes())
    content[-1] ^= 1
    Troubled().pipe_file("/bucket/acts/shard-00001.safetensors", bytes(content))
    store.read(0)
    with pytest.raises(TideError) as error:
        store.read(1)
    assert str(error.value) == (
        f"{URL}/shard-00001.safetensors is not the file that the manifest lists (another SHA-256); "
        "remove it there and run `tide collect --resume`"
    )
    Troubled().rm_file("/bucket/acts/shard-00001.safetensors")
    with pytest.raises(TideError, match=r"shard-00001.safetensors does not exist; copy the folder again"):
        store.read(1)


def test_a_copy_that_was_damaged_on_this_disk_is_fetched_again(store, cache, local):
    store.verify()
    for copy in (cache / "shards").iterdir():
        content = bytearray(copy.read_bytes())
        content[-1] ^= 1
        copy.write_bytes(content)
    again = ActivationStore(URL)
    again.verify()
    assert torch.equal(rows(again), rows(ActivationStore(local)))


def test_a_copy_that_another_process_removed_is_fetched_again(store, cache, local):
    store.read(0)
    shutil.rmtree(cache / "shards")
    store._files.clear()  # as after many other shards
    assert torch.equal(rows(store), rows(ActivationStore(local)))


def test_a_store_larger_than_the_cache_is_read_with_a_warning(store, local, monkeypatch, cache):
    largest = max(shard["bytes"] for shard in store.shards)
    monkeypatch.setenv("TIDE_CACHE_SIZE", f"{2 * largest}B")
    with pytest.warns(TideWarning, match="takes .* bytes and its copies may take .*; raise TIDE_CACHE_SIZE"):
        small = ActivationStore(URL)
    assert torch.equal(rows(small), rows(ActivationStore(local)))
    assert sum(copy.stat().st_size for copy in (cache / "shards").iterdir()) <= 2 * largest


@pytest.mark.parametrize("digest", ["", "../../outside"], ids=["none", "a path"])
def test_a_manifest_without_digests_is_refused(store, local, digest):
    text = re.sub(r'"sha256": "\w+"', f'"sha256": "{digest}"', (local / "manifest.json").read_text(), count=1)
    Troubled().pipe_file("/bucket/acts/manifest.json", text.encode())
    with pytest.raises(TideError) as error:
        ActivationStore(URL)
    assert str(error.value) == f"{URL} does not list the SHA-256 of every shard; copy the store and read the copy"


def test_the_shards_of_a_buffer_are_fetched_at_the_same_time(store, monkeypatch):
    """All three are under way before the first has come."""
    together = threading.Barrier(3, timeout=30)
    get_file = Troubled.get_file

    def get(self, path, *args, **kwargs):
        together.wait()
        get_file(self, path, *args, **kwargs)

    monkeypatch.setattr(Troubled, "get_file", get)
    assert sum(map(len, store.batches(16))) == len(store)

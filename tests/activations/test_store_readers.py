"""A store read by several: workers of a DataLoader, forked and spawned, readers by number; written by one alone."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import textwrap
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.helpers.store_batches import INFO, batch_of, check_rows, contents, go_on, write
from tide.activations.batch import ActivationBatch
from tide.activations.store import ActivationStore
from tide.activations.writer import StoreWriter
from tide.errors import TideError

FORK = pytest.param(
    "fork", marks=pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="does not fork")
)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """4 shards of 5 pieces each, 20,000 rows."""
    return write(tmp_path_factory.mktemp("large") / "s", 40, n=500, shard_bytes=150_000)


class Rows(IterableDataset):
    """As anyone writes it: the store opened where the data set is made."""

    def __init__(self, path: Path, **kwargs) -> None:
        self.store = ActivationStore(path)
        self.kwargs = kwargs

    def __iter__(self):
        return self.store.batches(400, buffer_rows=4096, **self.kwargs)


def loader(path: Path, n: int, context: str, **kwargs) -> DataLoader:
    data = Rows(path, **kwargs)
    data.store.read(0, 0, 2)  # a file is open when the workers start
    return DataLoader(data, batch_size=None, num_workers=n, multiprocessing_context=context)


def counted(batches) -> Counter:
    return Counter(tuple(row) for batch in batches for row in batch.x.tolist())


@pytest.mark.parametrize("context", [FORK, pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_loader_give_every_row_once_an_epoch(path, context):
    batches = list(loader(path, 2, context))
    for batch in batches:
        check_rows(batch)
        assert batch.paired
    whole = counted(ActivationStore(path).batches(400))
    assert counted(batches) == whole
    assert sum(whole.values()) == 20_000


@pytest.mark.parametrize("context", [FORK])
def test_workers_of_two_processes_divide_the_store(path, context):
    batches = [batch for rank in (0, 1) for batch in loader(path, 2, context, shard=(rank, 2))]
    assert counted(batches) == counted(ActivationStore(path).batches(400))


@pytest.mark.parametrize("context", [FORK])
@pytest.mark.parametrize("start", [1, 2, 5])
def test_a_loader_goes_on_where_it_stopped(path, context, start):
    whole = list(islice(loader(path, 2, context, epochs=None), start + 4))
    resumed = list(islice(loader(path, 2, context, epochs=None, start=start), 4))
    for one, other in zip(resumed, whole[start:], strict=True):
        assert torch.equal(one.x, other.x)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_numbered_readers_divide_every_epoch(path, n):
    store = ActivationStore(path)
    whole = counted(store.batches(400))
    for epochs in (1, 2):
        parts = [list(store.batches(400, epochs=epochs, buffer_rows=4096, shard=(i, n))) for i in range(n)]
        assert counted(batch for part in parts for batch in part) == Counter(
            {row: epochs * n for row, n in whole.items()}
        )
    resumed = list(store.batches(400, epochs=2, buffer_rows=4096, shard=(n - 1, n), start=3))
    assert all(torch.equal(a.x, b.x) for a, b in zip(resumed, parts[-1][3:], strict=True))


def test_readers_beyond_the_pieces_yield_nothing(tmp_path):
    store = ActivationStore(write(tmp_path / "s"))
    assert [len(list(store.batches(40, shard=(i, 5)))) for i in range(5)] == [2, 2, 2, 0, 0]
    assert list(store.batches(40, epochs=None, shard=(4, 5))) == []
    with pytest.raises(TideError, match="reader 2 of 2 does not exist"):
        store.batches(40, shard=(2, 2))


def test_a_pickled_store_reads_the_same(path):
    store = ActivationStore(path)
    store.read(0)
    again = pickle.loads(pickle.dumps(store))
    assert torch.equal(again.read(3).x, store.read(3).x)
    assert again.fingerprint == store.fingerprint


def test_more_shards_than_are_kept_open(tmp_path):
    store = ActivationStore(write(tmp_path / "s", 70, n=2, shard_bytes=1))
    assert len(store.shards) == 70
    whole = ActivationBatch.cat(list(store.batches(20, epochs=2)))
    check_rows(whole)
    assert len(whole) == 280


# -- one writer -------------------------------------------------------------------------------------------------


def test_a_second_writer_in_this_process_is_refused(tmp_path):
    with StoreWriter(tmp_path / "s", info=INFO) as first:
        first.add(batch_of(0))
        for resume in (False, True):
            with pytest.raises(TideError, match="s is being written by this process already; wait for it or choose"):
                StoreWriter(tmp_path / "s", info=INFO, resume=resume)
    assert len(ActivationStore(tmp_path / "s")) == 40
    go_on(tmp_path / "s", 2)  # and is free again


def test_a_second_writer_in_another_process_is_refused(tmp_path):
    script = textwrap.dedent("""
        import sys
        from tide.activations import StoreWriter
        with StoreWriter(sys.argv[1], resume=True):
            print("holds", flush=True)
            sys.stdin.readline()
    """)
    go_on(tmp_path / "s", 2)
    before = contents(tmp_path / "s")
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "s"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"holds\n"
        with pytest.raises(TideError, match=f"s is being written by process {other.pid}; wait for it"):
            go_on(tmp_path / "s", 4)
        assert contents(tmp_path / "s") == before
        other.kill()
    go_on(tmp_path / "s", 4)


def test_an_error_gives_the_folder_back(tmp_path):
    for _ in range(2):
        with pytest.raises(TideError, match="quota"):
            StoreWriter(tmp_path / "s", expected_bytes=10, quota=1)
        with pytest.raises(ZeroDivisionError), StoreWriter(tmp_path / "s"):
            raise ZeroDivisionError
    assert not (tmp_path / "s").exists()


def test_the_quota_counts_what_a_crash_left_unlisted(tmp_path):
    go_on(tmp_path / "s", 2)
    size = (tmp_path / "s/shard-00000.safetensors").stat().st_size
    (tmp_path / "s/shard-00007.safetensors").write_bytes(bytes(3 * size))
    with pytest.raises(TideError, match="raise the quota"):
        go_on(tmp_path / "s", 6, quota=4 * size + size // 2)
    assert len(ActivationStore(tmp_path / "s")) == 80
    go_on(tmp_path / "s", 6, quota=7 * size)
    (tmp_path / "s/shard-00007.safetensors").unlink()
    # The next shard takes the place of what a crash left there: that one is not counted twice.
    (tmp_path / "s/shard-00003.safetensors").write_bytes(bytes(3 * size))
    go_on(tmp_path / "s", 8, quota=5 * size)

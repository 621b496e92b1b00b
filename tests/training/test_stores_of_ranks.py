"""Ranks that train on stores, all one block or each its own, end as one process does."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.ranks import as_under_torchrun, run_ranks
from tests.helpers.trainings import assert_apart_by_rounding, assert_same, batch, config
from tide import TIDE
from tide.activations.writer import StoreWriter
from tide.cli.app import main
from tide.training import Jobs, from_block_stores, from_stores, train_blocks

BLOCKS = (2, 5, 7)
CONFIG = config(activation="jumprelu", modulation=False, steps=6, checkpoint_every=2, log_every=1)


def write_stores(folder: Path, seed: int) -> Path:
    """Of every block 2,048 rows, in shards of 256."""
    for block in BLOCKS:
        info = {"pipeline": None, "family": "pixart", "block": block, "tensor": "output"}
        with StoreWriter(folder / f"block-{block}", info=info) as writer:
            for shard in range(8):
                writer.add(batch(seed + 10 * block + shard, rows=256))
                writer.flush()
    return folder


def jobs(stores: list[Path], kind: str) -> Jobs:
    if kind == "one block":
        return Jobs.beside({2: from_stores([each / "block-2" for each in stores], CONFIG, buffer_rows=1024)})
    return from_block_stores(stores, CONFIG, buffer_rows=1024)


def trained(stores: list[Path], out: Path, damaged: Path) -> dict[str, Any]:
    """The figures of both kinds of training in a rank, and what the command says of a damaged store."""
    as_under_torchrun()
    words = ["train", "--sae", "--store", damaged, "--out", out / "damaged", "--set", "batch_tokens=64"]
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main([str(each) for each in words])
    found: dict[str, Any] = {"code": code, "said": said.getvalue()}
    for kind in ("one block", "several blocks"):
        learners = train_blocks(jobs(stores, kind), out / kind)
        found[kind] = {block: learner.history for block, learner in learners.items()}
    return found


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stores")
    return [write_stores(folder / str(seed), seed) for seed in (0, 100)]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """A store whose fourth shard, which is the second rank's to verify, has a flipped bit."""
    store = write_stores(tmp_path_factory.mktemp("damaged"), 0) / "block-2"
    file = store / "shard-00003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return store


@pytest.fixture(scope="module")
def ranks(stores, damaged, tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("ranks")
    return out, run_ranks(trained, 2, stores, out, damaged)


@pytest.fixture(scope="module")
def alone(stores, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for kind in ("one block", "several blocks"):
        train_blocks(jobs(stores, kind), out / kind)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return TIDE.from_pretrained(folder).state_dict()


def test_a_block_that_all_ranks_train(ranks, alone):
    """On two stores that are mixed."""
    assert_apart_by_rounding(alone / "one block", ranks[0] / "one block", CONFIG.steps)


def test_blocks_that_ranks_divide(ranks, alone):
    out, found = ranks
    assert [list(each["several blocks"]) for each in found] == [[2, 7], [5]]
    for block in BLOCKS:
        folder = Path("several blocks", f"block-{block}")
        assert_same(weights(alone / folder), weights(out / folder))


def test_a_damaged_shard_that_one_rank_finds_ends_all(ranks, damaged):
    out, found = ranks
    name = f"{damaged}/shard-00003.safetensors is not the shard that the manifest lists (another SHA-256)"
    assert [each["code"] for each in found] == [2, 2]
    assert found[0]["said"].startswith(f"tide: error: rank 0 of 2: rank 1 of 2 has ended: {name}")
    assert found[1]["said"].startswith(f"tide: error: rank 1 of 2: {name}")
    assert not (out / "damaged").exists()

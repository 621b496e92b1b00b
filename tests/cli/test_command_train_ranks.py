"""`torchrun -m tide train`: the checkpoints of one process, and errors that name the rank."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import as_under_torchrun, run_ranks
from tests.helpers.trainings import assert_apart_by_rounding
from tide import TIDE
from tide.cli.app import main

OPTIONS = ["--pipeline", "scenes", "--data", "scenes", "--images", "64", "--token-fraction", "1/2", "--cache"]
OPTIONS += ["--steps", "6", "--set", "n_latents=256", "k=8", "batch_tokens=512", "checkpoint_every=2", "log_every=1"]


def torchrun(ranks: int, *options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "-m", "tide", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [*command, *OPTIONS, *map(str, options)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=400)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return TIDE.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_blocks_that_ranks_divide_end_with_the_bits_of_one_process(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["train", *OPTIONS, "--block", "1", "6", "--out", str(tmp_path / "one")]) == 0
    finally:
        torch.set_num_threads(threads)
    done = torchrun(2, "--block", "1", "6", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("training on 64 images of scenes") == 1  # the first speaks for all
    assert {line[:12] for line in done.stdout.splitlines() if line.startswith("rank")} == {
        "rank 0 of 2:",
        "rank 1 of 2:",
    }
    assert done.stdout.count("Trained a TIDE of 256 latents, k = 8, on each of the blocks 1, 6: 6 steps") == 1
    assert done.stdout.count("tide browse") == 1
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("  too short to say")]
    assert rows == ["1", "6"]
    for block in (1, 6):
        one, two = weights(tmp_path / f"one/block-{block}"), weights(tmp_path / f"two/block-{block}")
        assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_block_that_all_ranks_train(tmp_path):
    """Two more steps resume it."""
    assert main(["train", *OPTIONS, "--block", "6", "--out", str(tmp_path / "one")]) == 0
    done = torchrun(2, "--block", "6", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert_apart_by_rounding(tmp_path / "one", tmp_path / "two", 6)
    done = torchrun(2, "--block", "6", "--out", tmp_path / "two", "--resume", "--steps", "8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Resumes from step 6 to 8") == 1


@pytest.mark.slow
def test_a_block_whose_latents_all_ranks_divide(tmp_path):
    """Two more steps of one process resume it."""
    assert main(["train", *OPTIONS, "--block", "6", "--out", str(tmp_path / "one")]) == 0
    done = torchrun(2, "--block", "6", "--shard-latents", "2", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("of 2: a TIDE of 256 latents (128 of them here) for block 6: ") == 2
    assert_apart_by_rounding(tmp_path / "one", tmp_path / "two", 6)
    assert main(["train", *OPTIONS, "--block", "6", "--out", str(tmp_path / "two"), "--resume", "--steps", "8"]) == 0


def with_a_number_of_its_own(out: Path) -> tuple[int, str]:
    """What a rank says whose command differs from the other's."""
    as_under_torchrun()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(["train", *OPTIONS, "--block", "6", "--shard-latents", str(dist.get_rank() + 1), "--out", str(out)])
    return code, said.getvalue()


def test_ranks_that_divide_the_latents_differently(tmp_path):
    message = "the ranks have different shard_latents, [1, 2]; give all of them the same"
    assert run_ranks(with_a_number_of_its_own, 2, tmp_path / "out", timeout=60, wait=30) == [
        (2, f"tide: error: rank {rank} of 2: {message}\n") for rank in range(2)
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "options", "message"), [
    (3, ["--block", "6", "--shard-latents", "2"],
     "shard_latents = 2 does not divide 3 ranks; start a multiple of 2 by torchrun, or leave it off"),
    (2, ["--block", "1", "6", "--shard-latents", "2"],
     "shard_latents = 2 divides the latents of one block and 2 are trained; train one block, or leave it off"),
    (3, ["--block", "6", "--shard-latents", "3"],
     "n_latents = 256 cannot be divided among 3 ranks; give a multiple of shard_latents = 3"),
    (2, ["--block", "6", "--shard-latents", "2", "--set", "activation=relu"],
     "shard_latents = 2 cannot train activation = relu; use topk, batch_topk or jumprelu without undo, or leave it"),
    (3, ["--block", "6"], "batch_tokens = 512 cannot be divided among 3 ranks, pairs kept whole; give a multiple of 6"),
    (3, ["--block", "1", "6"], "3 ranks cannot share 2 blocks; start at most 2, or train one block"),
    (2, ["--block", "6", "--batch-size", "64"], "2 ranks share what is mixed at a time, and that is 1 passes"),
])  # fmt: skip
def test_what_ranks_cannot_divide(tmp_path, ranks, options, message):
    done = torchrun(ranks, *options, "--out", tmp_path / "out")
    assert done.returncode != 0
    for rank in range(ranks):
        assert f"tide: error: rank {rank} of {ranks}: {message}" in done.stderr
    assert not (tmp_path / "out").exists()

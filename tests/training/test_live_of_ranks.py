"""Ranks on a live stream end with the same bits, whatever makes it faster and wherever it was resumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks
from tests.helpers.trainings import assert_same
from tide import TIDE
from tide.activations.options import CollectOptions
from tide.data import open_source
from tide.errors import TideError
from tide.loading import load_adapter
from tide.training import Jobs, TrainConfig, live_blocks, train_blocks

#: Seven steps in windows of three; a state after the fourth is in the middle of one.
CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=7, checkpoint_every=4)
FASTER = "passes beside the steps, encodings kept"


def trained(blocks: Sequence[int], out: Path) -> None:
    """What each rank does."""
    number = str(dist.get_rank())
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    adapter = load_adapter("scenes")
    images, options = open_source("scenes", adapter, images=12), CollectOptions(token_fraction=1 / 4, batch_size=2)

    def jobs(faster: bool) -> Jobs:
        with patch("tide.training.live_source.overlaps", lambda device: faster):
            more = {"options": options, "buffer_rows": 200, "cache": faster}
            return live_blocks(adapter, images, CONFIG, blocks=blocks, **more)

    train_blocks(jobs(False), out / "plain")
    train_blocks(jobs(True), out / FASTER)
    begun = jobs(True)
    with pytest.raises(TideError, match="the activations ended after 4 of 7 steps"):
        train_blocks(replace(begun, batches=lambda step: islice(begun.batches(step), 4)), out / "resumed")
    train_blocks(jobs(True), out / "resumed", resume=True)


def weights(folder: Path, blocks: Sequence[int]) -> dict[str, torch.Tensor]:
    folders = [folder / f"block-{block}" for block in blocks] if len(blocks) > 1 else [folder]
    return {
        f"{n}.{name}": each
        for n, f in enumerate(folders)
        for name, each in TIDE.from_pretrained(f).state_dict().items()
    }


@pytest.mark.parametrize("blocks", [(3,), (3, 6)], ids=["data parallel", "block parallel"])
def test_whatever_makes_it_faster_changes_no_bit(tmp_path, blocks):
    run_ranks(trained, 2, blocks, tmp_path)
    for way in (FASTER, "resumed"):
        assert_same(weights(tmp_path / "plain", blocks), weights(tmp_path / way, blocks))

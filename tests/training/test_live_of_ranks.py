"""Ranks on a live stream end with the same bits, whatever makes it faster and wherever it was resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from tests.helpers.ranks import as_under_torchrun, run_ranks
from tests.helpers.trainings import assert_same
from tide import TIDE
from tide.activations.options import CollectOptions
from tide.data import open_source
from tide.errors import TideError
from tide.loading import load_adapter
from tide.training import Jobs, TrainConfig, live_blocks, live_source, train_blocks

#: Seven steps in windows of three; a state after the fourth is in the middle of one.
CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=7, checkpoint_every=4)
FASTER = "passes beside the steps, encodings kept"


def trained(blocks: Sequence[int], out: Path) -> None:
    """What each rank does."""
    as_under_torchrun()
    adapter = load_adapter("scenes")
    images, options = open_source("scenes", adapter, images=12), CollectOptions(token_fraction=1 / 4, batch_size=2)

    def jobs(faster: bool) -> Jobs:
        with patch("tide.training.live_source.overlaps", lambda device: faster):
            more = {"options": options, "buffer_rows": 200, "cache": faster}
            return live_blocks(adapter, images, CONFIG, blocks=blocks, **more)

    train_blocks(jobs(False), out / "plain")
    threads, encodings = (
        patch.object(live_source, each.__name__, wraps=each) for each in (live_source.prefetched, live_source.Encoded)
    )
    with threads as thread, encodings as encoding:
        train_blocks(jobs(True), out / FASTER)
    assert (thread.call_count, encoding.call_count) == (1, 1)
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

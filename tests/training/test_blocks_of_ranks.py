"""A set of blocks that ranks divide is resumed by any number of them, and grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from tests.helpers.kill_ranks import BLOCKS, STEPS, jobs, same, weights
from tests.helpers.ranks import run_ranks
from tide.activations.batch import ActivationBatch
from tide.training.learner import Learner
from tide.training.to_checkpoint import train_blocks
from tide.world import World


def until(step: int, blocks: Sequence[int], out: Path, world: World) -> None:
    """Resumes the blocks' training, and interrupts it after a step of a checkpoint."""
    train_step = Learner.train_step

    def interrupted(learner: Learner, batch: ActivationBatch) -> dict[str, Any]:
        if learner.step == step:
            raise KeyboardInterrupt
        return train_step(learner, batch)

    with patch.object(Learner, "train_step", interrupted):
        try:
            train_blocks(jobs("block parallel", world, blocks), out, resume=True)
        except KeyboardInterrupt:
            assert step < STEPS


def changing(out: Path) -> None:
    """What two ranks do. While one goes on alone with what both began, the other trains all blocks at once."""
    world, begun = World(dist.get_rank(), dist.get_world_size()), BLOCKS[:2]
    until(8, begun, out / "parts", world)
    world.said("begun")
    if world.first:
        until(16, begun, out / "parts", World())
    else:
        until(STEPS, BLOCKS, out / "whole", World())
    world.said("gone on")
    until(STEPS, BLOCKS, out / "parts", world)


def test_blocks_are_resumed_by_another_number_of_ranks_and_added_to(tmp_path):
    """From 2 ranks to 1, and to 2 with a block more: the bits of one process that trained all at once."""
    run_ranks(changing, 2, tmp_path)
    assert len(weights(tmp_path / "parts")) == len(BLOCKS)
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))

"""The bytes of a planned step are those that its ranks ask to be moved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.helpers.plans import machine, sizes, steps_of, work
from tests.helpers.ranks import run_ranks
from tide.planning.model import Model
from tide_kernels import Ranks, tide_loss

D, N, K, ROWS = 16, 256, 4, 64
#: What a plan leaves out: for each latent how often it was active, and some dozen sums and counts.
LEFT_OUT = 2 * 8 * N + 2 * 8 * 24


def moved(across: int, activation: str, regime: str) -> float:
    """Bytes that this rank sends in a step of ``ROWS`` rows of all."""
    count, number = dist.get_world_size(), dist.get_rank()
    grid = torch.arange(count).view(-1, across)
    tokens = [dist.new_group(ranks) for ranks in grid.T.tolist()][number % across]
    latents = [dist.new_group(ranks) for ranks in grid.tolist()][number // across]
    sent = 0.0

    def add(tensor: torch.Tensor, group: dist.ProcessGroup, times: float) -> None:
        nonlocal sent
        sent += times * (dist.get_world_size(group) - 1) * tensor.nbytes

    def summed(tensor: torch.Tensor, group: dist.ProcessGroup, **options: Any) -> Any:
        add(tensor, group, 2 / dist.get_world_size(group))
        return all_reduce(tensor, group=group, **options)

    def gathered(tensors: list[torch.Tensor], tensor: torch.Tensor, group: dist.ProcessGroup) -> Any:
        add(tensor, group, 1)
        return all_gather(tensors, tensor, group=group)

    all_reduce, all_gather = dist.all_reduce, dist.all_gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", summed)
        patch.setattr(dist, "all_gather", gathered)
        n, rows = N // across, ROWS * across // count
        shapes = {"W_enc": (n, D), "W_dec": (n, D), "b_enc": (n,), "b_dec": (D,)}
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        if activation == "jumprelu":
            weights["threshold"] = torch.rand(n)
        tide_loss(
            torch.randn(rows, D, generator=torch.Generator().manual_seed(number // across)),
            **weights,
            k=K,
            activation=activation,
            regime=regime,
            gradients={name: torch.zeros_like(each) for name, each in weights.items() if name != "threshold"},
            ranks=Ranks(tokens, ROWS, latents, N),
        )
    return sent


@pytest.mark.parametrize(
    ("activation", "regime", "device"),
    [
        ("topk", "auto", "cpu"),
        ("jumprelu", "auto", "cpu"),
        ("batch_topk", "sparse", "cpu"),
        ("batch_topk", "dense", "cuda"),  # as on a GPU, without a sample
    ],
)
@pytest.mark.parametrize(("ranks", "across"), [(2, 1), (2, 2), (4, 2)])
def test_a_step_sends_what_was_planned(ranks, across, activation, regime, device):
    planned = work(
        pipeline=sizes(d_model=D),
        blocks=(0,),
        n_gpus=ranks,
        n_latents=N,
        k=K,
        batch_tokens=ROWS,
        activation=activation,
        shard_latents=across,
    )
    known = replace(machine(**steps_of("jumprelu"), **steps_of("batch_topk")), device=device)
    way = Model(planned, known).ways()[-1]
    of_a_rank = way.wire / planned.steps / ranks
    for sent in run_ranks(moved, ranks, across, activation, regime):
        assert of_a_rank <= sent <= of_a_rank + LEFT_OUT

"""What ranks agree on, and what they say of one that is missing."""

from __future__ import annotations

import os
import re
import time

import pytest
import torch
import torch.distributed as dist

from tests.helpers.ranks import run_ranks
from tide.errors import TideError
from tide.world import WAIT, Grid, StopVote, World, current, wait_limit


def here() -> World:
    return World(dist.get_rank(), dist.get_world_size())


def agreed() -> dict[str, object]:
    world = here()
    vote = StopVote(world)
    own = torch.tensor([[float(world.number), 1.0]])
    return {
        "gathered": world.gathered(own).tolist(),
        "summed": world.summed(own).tolist(),
        "said": world.said(f"I am {world.number}"),
        "least": world.least(7 - world.number),
        "first": world.first,
        # Rank 1 is asked to stop in the second step; all learn it in the third.
        "votes": [vote.asked(world.number == 1 and step == 1) for step in range(4)],
        "failures": [failure(world, kind) for kind in (None, TideError, OSError)],
    }


def failure(world: World, kind: type[Exception] | None) -> str:
    try:
        with world.together():
            if kind is not None and world.number == 1:
                raise kind("the disk\nis full")
    except Exception as error:
        return str(error)
    return ""


def test_ranks_agree():
    first, second = run_ranks(agreed, 2)
    assert first.pop("first")
    assert not second.pop("first")
    assert first["failures"] == ["", *["rank 1 of 2 has ended: the disk is full"] * 2]
    assert second.pop("failures") == ["", *["the disk\nis full"] * 2]
    del first["failures"]
    assert first == second
    assert first == {
        "gathered": [[0.0, 1.0], [1.0, 1.0]],
        "summed": [[1.0, 2.0]],
        "said": ["I am 0", "I am 1"],
        "least": 6,
        "votes": [False, False, True, False],
    }


def in_a_grid() -> dict[str, object]:
    world = here()
    grid = Grid(world.number, world.count, 2)
    number = torch.tensor([grid.number])
    return {
        "tokens": (grid.tokens.number, grid.tokens.count, grid.tokens.gathered(number).tolist()),
        "latents": (grid.latents.number, grid.latents.count, grid.latents.gathered(number).tolist()),
        "said": (grid.tokens.said(grid.number), grid.latents.said(grid.number), grid.said(grid.number)),
        "all": grid.summed(number).tolist(),
        "mesh": grid.mesh(number.device).mesh.tolist(),
    }


def test_a_grid_divides_tokens_by_its_rows_and_latents_by_its_columns():
    for rank, found in enumerate(run_ranks(in_a_grid, 4)):
        row, column = divmod(rank, 2)
        those, these = [column, 2 + column], [2 * row, 2 * row + 1]
        assert found == {
            "tokens": (row, 2, those),
            "latents": (column, 2, these),
            "said": (those, these, [0, 1, 2, 3]),
            "all": [6],
            "mesh": [[0, 1], [2, 3]],
        }


@pytest.mark.parametrize(("count", "across", "ranks"), [(3, 2, "3 ranks"), (1, 2, "1 rank"), (2, 4, "2 ranks")])
def test_ranks_that_cannot_form_a_grid(count, across, ranks):
    message = f"shard_latents = {across} does not divide {ranks}; start a multiple of {across} by torchrun, or leave"
    with pytest.raises(TideError, match=f"^{message}"):
        Grid(0, count, across)


def lost() -> str:
    """What the ranks that remain say when rank 1 does not take part."""
    world = here()
    try:
        with world.watched(lambda: "step 4 is kept"):
            if world.number == 1:
                time.sleep(8)
                return ""
            world.said(0)
    except TideError as error:
        return str(error)
    return "nothing was raised"


def test_a_rank_that_is_late_is_named(monkeypatch):
    monkeypatch.setenv(WAIT, "2")
    for rank, said in enumerate(run_ranks(lost, 3, wait=2)):
        if rank != 1:
            assert said == (f"waited 2 s for rank 1 of 3 (the limit is set by {WAIT}, in seconds); step 4 is kept")


def dead() -> str:
    """What the ranks that remain say when rank 1 has ended; rank 2 works meanwhile and notices last."""
    world = here()
    try:
        with world.watched(lambda: "step 4 is kept"):
            world.said(0)
            if world.number == 1:
                return ""
            time.sleep(4 if world.number == 2 else 0)
            world.said(0)
    except TideError as error:
        return str(error)
    return "nothing was raised"


def test_a_rank_that_is_dead_is_named_and_none_that_lives():
    for rank, said in enumerate(run_ranks(dead, 4)):
        if rank != 1:
            assert said.startswith("no answer from rank 1 of 4 (")
            assert said.endswith("of the one that ended, or of its machine, says why; step 4 is kept")


@pytest.mark.parametrize(("launched", "gpus", "message"), [
    ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}, 1, "local rank 0 is one of 4 on a machine with 1 GPU; start at most "
     "1 on each (--nproc-per-node 1), or hide the GPUs to train on CPUs (CUDA_VISIBLE_DEVICES=)"),
    ({"LOCAL_RANK": "2"}, 2, "local rank 2 is one of 3 on a machine with 2 GPUs; start at most 2 on each"),
])  # fmt: skip
def test_more_ranks_on_a_machine_than_gpus(monkeypatch, launched, gpus, message):
    """Every one of them says so, and none waits for another."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", **launched}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TideError, match=rf"^{re.escape(message)}"):
        current()


@pytest.mark.parametrize("asked", [None, "1"], ids=["by default", "unless it is asked to"])
def test_nccl_does_not_end_the_process_before_a_lost_rank_is_named(monkeypatch, asked):
    """Its watchdog cleans up only, which is 2 of torch's ErrorHandlingMode."""
    name, formed = "TORCH_NCCL_ASYNC_ERROR_HANDLING", []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: formed.append(os.environ[name]))
    for variable, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", name: asked or "2"}.items():
        monkeypatch.setenv(variable, value)
    if asked is None:
        monkeypatch.delenv(name)
    assert current().count == 2
    assert formed == [asked or "2"]


def test_an_error_that_is_no_collective_s_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"), World(0, 2).watched(lambda: ""):
        raise RuntimeError("shapes do not match")


def test_a_process_alone_exchanges_nothing():
    world, own = World(), torch.ones(2)
    assert world.gathered(own) is own
    assert world.summed(own) is own
    assert world.said("x") == ["x"]
    assert world.first
    assert not world.several
    assert not world.ranks(8, 4).several
    with pytest.raises(TideError, match=r"^no$"), world.together():
        raise TideError("no")
    assert StopVote(world).asked(True)
    assert current().count == 1
    assert world.tokens is world
    assert not world.latents.several
    with pytest.raises(TideError, match=r"^shard_latents = 2 does not divide 1 rank;"):
        current(2)


@pytest.mark.parametrize("said", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_that_is_no_number_of_seconds(monkeypatch, said):
    monkeypatch.setenv(WAIT, said)
    with pytest.raises(TideError, match=rf"^{WAIT} = '{said}' is not a number of seconds; give one above 0"):
        wait_limit()

"""Plans as a whole: what they hold, and what they refuse."""

from __future__ import annotations

import json
import re

import pytest

from tests.helpers.plans import machine, sizes, steps_of
from tide.errors import TideError
from tide.planning import plan, planner
from tide.training import TrainConfig

CONFIG = TrainConfig(activation="topk", n_latents=50, k=5, batch_tokens=100)

WIDE = CONFIG.changed({"n_latents": 1_500_006, "batch_tokens": 2})


def planned(**changed):
    options = {"images": 100, "machine": machine(), "config": CONFIG, "blocks": ["all"]}
    return plan(sizes(), **{**options, **changed})


def test_a_plan_has_the_three_ways():
    found = planned(gpus=2)
    assert [way.name for way in found.ways] == ["from stores", "live, block parallel", "data parallel"]
    assert (found.work.blocks, found.work.n_gpus, found.memory) == ((0, 1, 2, 3), 2, 1e9)
    assert found.fitting()[0].total_seconds == min(way.total_seconds for way in found.ways)
    held = json.loads(json.dumps(found.to_dict()))
    assert held["ways"][0]["total_seconds"] == found.ways[0].total_seconds


def test_the_defaults_of_training_are_those_of_a_plan():
    found = plan("PixArt-alpha/PixArt-XL-2-1024-MS", images=10, machine="nvidia-h200")
    work, default = found.work, TrainConfig()
    assert (work.n_latents, work.k) == default.sizes(1152)
    assert (work.activation, work.batch_tokens, work.blocks) == (default.activation, default.batch_tokens, (26,))


def test_a_fourth_way_where_latents_are_divided():
    found = planned(gpus=4, config=CONFIG.changed({"shard_latents": 2}))
    assert [way.name for way in found.ways][3:] == ["latents divided"]
    assert found.ways[:3] == planned(gpus=4).ways


def test_a_way_that_does_not_fit_is_left_to_others():
    least = min(way.total_memory for way in planned().ways)
    found = planned(memory=int(least) + 1)
    assert [way.name for way in found.fitting()] == ["from stores", "data parallel"]
    live = found.ways[1]
    assert found.lacking(live) == pytest.approx(live.total_memory - least, abs=1)


def test_no_way_fits():
    with pytest.raises(
        TideError,
        match=r"^no way of training fits: even from stores needs 2.09 MB of memory a rank, 1.09 MB more than there is, "
        r"most of it for the pipeline; use GPUs with more memory$",
    ):
        planned(memory=10**6)


def test_what_needs_memory_decides_over_the_remedy():
    with pytest.raises(TideError, match=r"most of it for the autoencoders; lower --n-latents$"):
        planned(config=TrainConfig(activation="topk", n_latents=10**6, k=5, batch_tokens=2), memory=10**8)


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({"gpus": 6}, "divide the latents among GPUs, a block at a time (--shard-latents 3)"),  # 2 lack memory
        ({"gpus": 6, "blocks": [1]}, "divide the latents among GPUs (--shard-latents 3)"),
        ({"gpus": 2}, "lower --n-latents"),
        ({"gpus": 4}, "lower --n-latents"),  # 4 does not divide the latents
        ({"gpus": 6, "config": WIDE.changed({"activation": "relu"})}, "lower --n-latents"),  # trains on one rank
        ({"gpus": 6, "config": WIDE.changed({"undo": True})}, "lower --n-latents"),
    ],
)
def test_models_that_fit_no_gpu_are_divided_among_the_least_that_have_room(changed, remedy):
    with pytest.raises(TideError, match=rf"most of it for the autoencoders; {re.escape(remedy)}$"):
        planned(**{"config": WIDE, "machine": machine(**steps_of("relu")), "memory": 170_000_000} | changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gpus": 0}, "gpus 0 is too small; give at least 1"),
        ({"images": 0}, "n_images 0 is too small; give at least 1"),
        (
            {"gpus": 8, "config": CONFIG.changed({"shard_latents": 5})},
            "shard_latents = 5 does not divide 8 GPUs; plan a multiple of 5, or leave it off",
        ),
        (
            {"gpus": 8, "config": CONFIG.changed({"shard_latents": 4})},
            "n_latents = 50 cannot be divided among 4 ranks; give a multiple of shard_latents = 4",
        ),
        ({"blocks": [4]}, r"block 4 does not exist; this transformer has blocks 0\.\.3"),
        ({"machine": "h300"}, "machine 'h300' is unknown; use here or nvidia-h200"),
        ({"config": TrainConfig(activation="gated")}, "steps of activation gated were not measured on round"),
        ({"machine": "here"}, "measuring this machine runs the pipeline, and it is not in a folder here"),
    ],
)
def test_what_is_refused(monkeypatch, changed, message):
    monkeypatch.setattr("tide.planning.here.load_adapter", lambda *_: pytest.fail("a pipeline was loaded"))
    with pytest.raises(TideError, match=message):
        planned(**changed)


def test_here_is_measured_with_the_planned_pipeline_and_training(monkeypatch):
    asked = []
    monkeypatch.setattr(planner, "measure", lambda *given: asked.append(given) or machine())
    found = plan("scenes", images=4, config=CONFIG, size=(64, 64))
    assert found.machine.name == "round"
    assert asked == [("scenes", CONFIG, found.work.options, (64, 64))]


def test_a_part_of_the_latents_is_measured_where_they_are_to_be_divided(monkeypatch):
    asked = []
    monkeypatch.setattr(planner, "measure", lambda *given: asked.append(given[1]) or machine())
    plan("scenes", images=4, gpus=2, config=CONFIG.changed({"shard_latents": 2}))
    assert asked == [CONFIG.changed({"n_latents": 25, "k": 3})]

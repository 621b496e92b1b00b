"""The formulas of a plan, at numbers that can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.plans import machine, sizes, steps_of, work
from tide.activations.options import CollectOptions
from tide.activations.stream import HELD
from tide.activations.writer import estimate_bytes
from tide.planning.model import Model
from tide.training.sources import BUFFER_ROWS

#: Of helpers.plans: 2 n d + n + d.
PARAMETERS = 2 * 50 * 8 + 50 + 8
ROW = 8 * 2 + 16
#: d (n weights + B (n sparse + k place)) + parameters update: 5e-9 + 5e-8 for a token, less than the dense 5e-8 + ...
STEP = 8 * (50 * 1e-7 + 100 * 50e-9) + PARAMETERS * 1e-6


def test_a_step_takes_the_cheaper_regime():
    dense, sparse = 50 * 1e-9, 50 * 1e-10 + 5 * 1e-8
    assert dense < sparse
    assert Model(work(), machine()).step(100) == pytest.approx(STEP)
    few = Model(work(k=1), machine()).step(100)
    assert few == pytest.approx(8 * (50e-7 + 100 * (50e-10 + 1e-8)) + PARAMETERS * 1e-6)


def test_one_rank_from_stores():
    way = Model(work(), machine()).from_stores()
    stored = 2 * estimate_bytes(100, 64, 8)
    assert way.seconds == pytest.approx(
        {
            "images": 100 * 1e4 * 1e-6,
            "encode": 100 * 1e7 / 1e9,
            "forward": 100 * 2 * 1e8 * (2 / 4) / 1e9,  # a pass ends after the second of four blocks
            "write": stored / 1e6,
            "training": 2 * 8 * STEP,
        }
    )
    assert (way.disk, way.wire) == (stored, 0)
    assert way.total_seconds == pytest.approx(sum(way.seconds.values()))


def test_transcoders_keep_a_target_beside_every_token():
    pairs = CollectOptions(tensor="attention_input", target="attention")
    plain, own = (Model(work(n_gpus=2, options=options), machine()).ways() for options in (CollectOptions(), pairs))
    assert [way.disk for way in own] == [2 * estimate_bytes(100, 64, 8, target=True), 0, own[0].disk]
    assert own[1].wire / plain[1].wire == (2 * 8 * 2 + 16) / ROW
    assert own[1].memory["buffers"] == HELD * BUFFER_ROWS * (2 * 8 * 2 + 16)


def test_ranks_share_images_and_blocks():
    one, four = (Model(work(n_gpus=n), machine()).from_stores() for n in (1, 4))
    assert {name: one.seconds[name] / four.seconds[name] for name in one.seconds} == pytest.approx(
        {"images": 4, "encode": 4, "forward": 4, "write": 4, "training": 2}  # there are two blocks
    )
    odd = Model(work(n_gpus=3), machine()).from_stores()
    assert odd.seconds["encode"] == pytest.approx(34 * 1e7 / 1e9)


def test_a_slow_disk_bounds_the_steps():
    way = Model(work(), machine(read=ROW * 100)).from_stores()  # a second a step
    assert way.seconds["training"] == pytest.approx(2 * 8 * 1.0)


def test_tokens_travel_to_the_owners_of_blocks():
    way = Model(work(n_gpus=2, epochs=3), machine()).live()
    to_one = 3 * 8 * 100 * ROW / 2  # half of the tokens of each step are on the other rank
    assert way.wire == pytest.approx(2 * to_one)
    assert way.seconds["wire"] == pytest.approx(to_one / 1e6)
    assert way.seconds["forward"] == pytest.approx(3 * 50 * 2 * 1e8 * 0.5 / 1e9)  # once an epoch
    assert way.disk == 0


def test_passes_serve_several_epochs_of_a_live_stream():
    """Three epochs at two uses of a pass take two passes of the images."""
    once, twice = (Model(work(n_gpus=2, epochs=3, reuse=reuse), machine()).live() for reuse in (1, 2))
    for name in ("forward", "wire"):
        assert twice.seconds[name] == pytest.approx(once.seconds[name] * 2 / 3)
    assert twice.wire == pytest.approx(once.wire * 2 / 3)
    assert twice.seconds["training"] == once.seconds["training"]


def test_one_rank_sends_nothing():
    for way in Model(work(), machine()).ways():
        assert (way.wire, way.seconds.get("wire", 0)) == (0, 0)


def test_gradients_travel_between_all_ranks():
    """A ring sends each rank's gradients twice, but for its own share."""
    way = Model(work(n_gpus=4), machine()).data_parallel()
    sent = 2 * 8 * 2 * 3 / 4 * 4 * PARAMETERS
    assert way.seconds["wire"] == pytest.approx(sent / 1e6)
    assert way.wire == pytest.approx(4 * sent)
    assert way.seconds["training"] == pytest.approx(2 * 8 * (8 * (50e-7 + 25 * 50e-9) + PARAMETERS * 1e-6))


def test_latents_are_divided():
    """Two ranks have 25 latents each, with 3 of 5 active, and the same 50 of the 100 tokens of a step as each other."""
    way = Model(work(n_gpus=4, shard_latents=2), machine()).latents_divided()
    parameters = 2 * 25 * 8 + 25 + 8
    tokens = 50 * 4 * (2 * 1 / 2 * 8 + 1 * 5)  # reconstructions summed, and the other rank's candidates
    gradients = 2 * 1 / 2 * 4 * parameters
    assert way.wire == pytest.approx(4 * 2 * 8 * (tokens + gradients))
    assert way.seconds["wire"] == pytest.approx(2 * 8 * (tokens + gradients) / 1e6)
    assert way.seconds["training"] == pytest.approx(2 * 8 * (8 * (25e-7 + 50 * 25e-9) + parameters * 1e-6))
    assert way.seconds["forward"] == Model(work(n_gpus=4), machine()).data_parallel().seconds["forward"]


def test_only_topk_sends_candidates():
    topk, others = (
        Model(work(n_gpus=2, shard_latents=2, activation=name), machine(**steps_of("jumprelu"))).latents_divided()
        for name in ("topk", "jumprelu")
    )
    assert topk.wire - others.wire == pytest.approx(2 * 2 * 8 * 100 * 4 * 5)


def test_batch_topk_sends_counts():
    """64-bit counts of 16 and 15 bits, summed among all ranks or first among those of a token's latents; on a CPU also
    of a sample."""
    steps, counts = 2 * 8, 8 * (2**16 + 2**15)
    known = machine(**steps_of("jumprelu"), **steps_of("batch_topk"))
    for device, times in (("cuda", 1), ("cpu", 2)):
        batch_topk, others = (
            Model(work(n_gpus=4, shard_latents=2, activation=name), replace(known, device=device))
            for name in ("batch_topk", "jumprelu")
        )
        more = batch_topk.data_parallel().wire - others.data_parallel().wire
        assert more == pytest.approx(4 * steps * times * counts * 2 * 3 / 4)
        more = batch_topk.latents_divided().wire - others.latents_divided().wire
        assert more == pytest.approx(4 * steps * times * counts * 2 * (1 / 2 + 1 / 2))


def test_ranks_that_divide_the_latents_have_a_part_of_the_memory():
    way = Model(work(pipeline=sizes(n_weights=10), n_gpus=4, n_latents=10**5, shard_latents=4), machine())
    modulation = 257 * 8 + 9 * 8 + 2 * 9 * 8
    assert way.latents_divided().memory == pytest.approx(
        {"autoencoders": 16 * (2 * 25_000 * 8 + 25_000 + 8 + modulation), "step": 100 * 25_000 * 4.0}
    )


def test_ranks_that_divide_the_latents_are_neighbours():
    """With two GPUs in a node, only the gradients of two rows of two leave it. Where nodes have three, the second row
    has a rank on each."""
    near, far, across = (Model(work(n_gpus=4, shard_latents=2), machine(node=n)).latents_divided() for n in (4, 2, 3))
    gradients = 2 * 8 * 2 * 1 / 2 * 4 * (2 * 25 * 8 + 25 + 8)
    assert far.seconds["wire"] - near.seconds["wire"] == pytest.approx(gradients / 1e5 - gradients / 1e6)
    assert across.seconds["wire"] == pytest.approx(10 * near.seconds["wire"])


def test_nodes_are_joined_by_the_slower_wire():
    inside, between = (Model(work(n_gpus=2), machine(node=node)).live().seconds["wire"] for node in (2, 1))
    assert between == pytest.approx(10 * inside)


def test_the_threshold_is_set_on_65536_tokens_at_most():
    few, many = (
        Model(work(n_images=n), machine(topk_match=1.0)).training(100)
        - Model(work(n_images=n), machine()).training(100)
        for n in (100, 100_000)
    )
    assert (few, many) == pytest.approx((800 * 50 * 8, 65536 * 50 * 8))


def test_memory_of_a_live_rank():
    way = Model(work(n_gpus=1), machine()).live()
    modulation = 257 * 8 + 9 * 8 + 2 * 9 * 8
    assert way.memory == pytest.approx(
        {
            "pipeline": 2 * 10**6,
            "pass": (8 * 2 * 64 * 5 + 8 * 8 * 2) * 8 * 2,
            "autoencoders": 2 * 16 * (PARAMETERS + modulation),
            "buffers": 2 * HELD * BUFFER_ROWS * ROW,
            "step": 100 * 50 * 4.0,
        }
    )


def test_collection_and_training_from_stores_do_not_need_memory_at_once():
    collecting = Model(work(), machine()).from_stores()
    assert collecting.memory.keys() == {"pipeline", "pass"}
    training = Model(work(pipeline=sizes(n_weights=10), n_latents=10**5, k=5), machine()).from_stores()
    assert training.memory.keys() == {"autoencoders", "step"}

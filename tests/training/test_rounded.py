"""Weights in bfloat16 for the kernels, with float32 masters that everything else sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.trainings import ROWS, assert_same, batch, config, interrupted, model, state, stream, trainer
from tide.activations.block_batch import BlockBatch
from tide.activations.shared_stream import Shares
from tide.errors import TideError
from tide.sae import TIDE
from tide.training import LossConfig
from tide.training.learner import Learner, Origin
from tide.training.rounded import RoundedWeights
from tide.training.trainer import fit_blocks
from tide.world import World
from tide_kernels import backend_status

PRECISION = "bf16_weights"
#: The relative error of a number that is rounded to bfloat16, which keeps 8 bits.
ROUNDING = 2.0**-9
BLOCK = 6


def test_the_copies_are_the_rounded_weights_in_one_place():
    sae = model()
    rounded = RoundedWeights(sae)
    first = rounded.now()
    places = {name: each.data_ptr() for name, each in first.items()}
    with torch.no_grad():
        sae.W_enc.mul_(3)
    for name, each in rounded.now().items():
        assert torch.equal(each, getattr(sae, name).bfloat16())
        assert each.data_ptr() == places[name]


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu"])
def test_a_step_is_that_of_weights_that_are_rounded_in_it(tmp_path, activation):
    """Bit for bit, with revival, calibration and, for two of them, a threshold at the end."""
    found = {}
    for precision in ("bf16", PRECISION):
        job = trainer(tmp_path / precision, precision=precision, activation=activation, loss=LossConfig(reg=0.0))
        job.fit(stream())
        found[precision] = state(job.model)
        assert job.revived
    assert_same(found["bf16"], found[PRECISION])


@pytest.mark.parametrize("backend", ["reference", "native", pytest.param("triton", marks=pytest.mark.gpu)])
def test_gradients_are_those_of_float32_to_bfloat16s_rounding(tmp_path, backend):
    """Tokens, weights, pre-activations and reconstructions are rounded, and sums in between are float32: some errors of
    2^-9 on each way from a weight to its gradient."""
    if (reason := backend_status()[backend]) is not None:
        pytest.skip(reason)
    if backend == "triton" and not torch.cuda.is_available():
        pytest.skip("the interpreter computes bfloat16 wrongly")
    device, found = "cuda" if backend == "triton" else "cpu", {}
    for precision in ("fp32", PRECISION):
        sae = model()
        sae.calibrate(batch(0).x, batch(0).position)
        loss = LossConfig(temporal=0, sparsity=0)
        job = trainer(tmp_path / precision, sae, precision=precision, loss=loss, device=device)
        job.model.backend = backend
        with torch.no_grad():  # all latents but three are far from being selected, which rounding does not change
            job.model.b_enc.fill_(-50.0)
            job.model.b_enc[:3] = 50.0
        job.train_step(batch(1).to(device))
        found[precision] = {name: getattr(job.model, name).grad for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    for name, exact in found["fp32"].items():
        own = found[PRECISION][name]
        assert own.dtype == torch.float32
        error = float((own - exact).square().mean().sqrt()) / float(exact.square().mean().sqrt())
        assert 0 < error < 8 * ROUNDING, name


def test_updates_below_bfloat16s_resolution_add_up(tmp_path):
    """A step moves a weight by about the learning rate. Between 2^-3 and 2^-2 neighbours in bfloat16 are 2^-10 apart:
    in bfloat16 alone such weights would stay for ever."""
    job = trainer(tmp_path, precision=PRECISION, steps=1000, lr=5e-5, warmup=0, final_lr=1)
    rows = batch(0)
    job.model.calibrate(rows.x, rows.position)
    start = job.model.W_dec.detach().clone()
    alone = start.bfloat16()
    for _ in range(60):
        before = job.model.W_dec.detach().clone()
        job.train_step(rows)
        alone += (job.model.W_dec.detach() - before).bfloat16()
    moved = (start.abs() > 2**-3) & (start.abs() < 2**-2) & ((job.model.W_dec - start).abs() > 2**-9)
    assert moved.sum() > 20
    assert torch.equal(alone[moved], start.bfloat16()[moved])
    assert not (job._rounded.now()["W_dec"] == start.bfloat16())[moved].any()


def test_a_resumed_training_ends_with_the_same_bits_and_float32_weights(tmp_path):
    whole, first, second = (trainer(tmp_path / name, precision=PRECISION) for name in ("whole", "parts", "parts"))
    whole.fit(stream)
    with pytest.raises(TideError, match="ended after 25 of 60 steps"):
        first.fit(interrupted(25))
    first.save()
    second.fit(stream, resume=True)
    assert second.lengths == []
    assert_same(state(second.model), state(whole.model))
    stored = TIDE.from_pretrained(tmp_path / "whole")
    assert stored.W_enc.dtype == stored.W_dec.dtype == torch.float32
    assert_same(stored.state_dict(), state(whole.model))
    assert not torch.equal(stored.W_enc, stored.W_enc.bfloat16().float())


def of_ranks(folder: str) -> dict[str, torch.Tensor]:
    import torch.distributed as dist

    world = World(dist.get_rank(), dist.get_world_size())
    part = Shares(world).part(ROWS)
    learner = Learner(model(), config(precision=PRECISION, steps=20), Path(folder), world)
    fit_blocks(
        {BLOCK: learner},
        lambda step: (BlockBatch({BLOCK: each.merged().take(part)}) for each in stream(step)),
        {BLOCK: Origin()},
        title="",
        progress=False,
        world=world,
    )
    return state(learner.model)


def test_ranks_train_one_model_together(tmp_path):
    """From one process's they differ by less than from float32's, in units that a flipped selection makes coarse."""
    first, second = run_ranks(of_ranks, 2, str(tmp_path / "ranks"))
    assert_same(first, second)
    assert {each.dtype for each in first.values() if each.is_floating_point()} == {torch.float32}
    alone = trainer(tmp_path / "alone", precision=PRECISION, steps=20)
    alone.fit(stream)
    for name in ("W_enc", "W_dec"):
        error = (first[name] - getattr(alone.model, name)).square().mean().sqrt()
        assert error < 0.05 * first[name].square().mean().sqrt(), name


@pytest.mark.parametrize(
    ("sae", "what"),
    [(lambda: model(activation="relu"), "activation = relu"), (lambda: model(undo=True), "undo")],
    ids=["relu", "undo"],
)
def test_a_loss_that_is_not_fused_reads_the_models_own_weights(tmp_path, sae, what):
    with pytest.raises(
        TideError, match=rf"^precision = bf16_weights does not serve {what}; use bf16, or one of topk, "
    ):
        trainer(tmp_path, sae(), precision=PRECISION)

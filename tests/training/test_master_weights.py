"""precision = bf16: the kernels read rounded weights, everything else the float32 masters."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.trainings import assert_same, batch, interrupted, model, state, stream, trainer
from tide.errors import TideError
from tide.sae import TIDE
from tide.training import LossConfig
from tide_kernels import backend_status

#: The relative error of a number that is rounded to bfloat16, which keeps 8 bits.
ROUNDING = 2.0**-9


@pytest.mark.parametrize("backend", ["reference", "native", pytest.param("triton", marks=pytest.mark.gpu)])
def test_gradients_are_those_of_float32_to_bfloat16s_rounding(tmp_path, backend):
    """Tokens, weights, pre-activations and reconstructions are rounded, and sums in between are float32: some errors of
    2^-9 on each way from a weight to its gradient."""
    if (reason := backend_status()[backend]) is not None:
        pytest.skip(reason)
    if backend == "triton" and not torch.cuda.is_available():
        pytest.skip("the interpreter computes bfloat16 wrongly")
    device, found = "cuda" if backend == "triton" else "cpu", {}
    for precision in ("fp32", "bf16"):
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
        own = found["bf16"][name]
        assert own.dtype == torch.float32
        error = float((own - exact).square().mean().sqrt()) / float(exact.square().mean().sqrt())
        assert 0 < error < 8 * ROUNDING, name


def test_updates_below_bfloat16s_resolution_add_up(tmp_path):
    """A step moves a weight by about the learning rate. Between 2^-3 and 2^-2 neighbours in bfloat16 are 2^-10 apart:
    in bfloat16 alone such weights would stay for ever."""
    job = trainer(tmp_path, precision="bf16", steps=1000, lr=5e-5, warmup=0, final_lr=1)
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
    assert not (job.model.W_dec.bfloat16() == start.bfloat16())[moved].any()


def test_a_resumed_training_ends_with_the_same_bits_and_float32_weights(tmp_path):
    whole, first, second = (trainer(tmp_path / name, precision="bf16") for name in ("whole", "parts", "parts"))
    whole.fit(stream)
    with pytest.raises(TideError, match="ended after 25 of 60 steps"):
        first.fit(interrupted(25))
    first.save()
    second.fit(stream, resume=True)
    assert_same(state(second.model), state(whole.model))
    stored = TIDE.from_pretrained(tmp_path / "whole")
    assert stored.W_enc.dtype == stored.W_dec.dtype == torch.float32
    assert not torch.equal(stored.W_enc, stored.W_enc.bfloat16().float())

"""The benchmarks' gates: they close for wrong gradients, and peers that cannot run say why."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import gate, peers, shapes

CPU = torch.device("cpu")
SHAPE = shapes.Shape(24, 16, 64, 6)


def _step(all_terms: bool, dtype: torch.dtype = torch.float32, contender: peers.Contender | None = None):
    contender = contender or peers.Ours("reference", all_terms)
    problem = gate.clear_problem(SHAPE, CPU, dtype, all_terms=all_terms)
    autocast = None if dtype == torch.float32 else dtype
    return contender, contender.prepare(problem, autocast), gate.truth(problem, dtype, all_terms=all_terms)


@pytest.mark.parametrize("all_terms", [False, True], ids=["mse", "all terms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gate_is_green_for_the_reference(all_terms, dtype):
    contender, step, truth = _step(all_terms, dtype)
    assert gate.check(contender, step, truth, dtype) <= gate.tolerance(contender, dtype)
    assert set(truth.gradients) == set(step.leaves)


def test_the_gate_is_green_for_dense_torch():
    gate.check(*_step(False, contender=peers.DenseTorch()), torch.float32)


def test_the_gate_is_green_for_compiled_dense_torch():
    gate.check(*_step(False, contender=peers.DenseTorch("aot_eager")), torch.float32)


@pytest.mark.parametrize("all_terms", [False, True], ids=["mse", "all terms"])
def test_a_buffered_step_has_the_gradients_of_a_fresh_one_however_often_it_runs(all_terms):
    _, fresh, truth = _step(all_terms)
    _, buffered, _ = _step(all_terms, contender=peers.Ours("reference", all_terms, buffered=True))
    fresh.run()
    for _ in range(2):
        truth.errors(buffered)
    for name, gradient in fresh.gradients().items():
        torch.testing.assert_close(buffered.gradients()[name], gradient)


def test_the_gate_is_red_for_a_buffered_step_that_is_not_zeroed():
    contender, step, truth = _step(False, contender=peers.Ours("reference", buffered=True))
    step.run()
    step.run = step.accumulate  # type: ignore[method-assign]
    with pytest.raises(gate.GateError, match="is off by 1"):
        gate.check(contender, step, truth, torch.float32)


@pytest.mark.parametrize("wrong", [lambda p: p * 1.001, lambda p: p * torch.nan], ids=["off by 0.1 %", "NaN"])
def test_the_gate_is_red_for_a_wrong_gradient(wrong):
    contender, step, truth = _step(False)
    right = step.loss
    step.loss = lambda: wrong(right())
    with pytest.raises(gate.GateError, match=r"allowed 1\.0e-05"):
        gate.check(contender, step, truth, torch.float32)


def test_the_truth_does_not_depend_on_its_chunks(monkeypatch):
    problem = gate.clear_problem(SHAPE, CPU, torch.float32, all_terms=True)
    whole = gate.truth(problem, torch.float32, all_terms=True)
    monkeypatch.setattr(gate, "CHUNK_ELEMENTS", 4 * SHAPE.n_latents)
    for name, gradient in gate.truth(problem, torch.float32, all_terms=True).gradients.items():
        torch.testing.assert_close(gradient, whole.gradients[name])


def test_clear_problems_have_no_near_ties():
    problem = gate.clear_problem(SHAPE, CPU, torch.float32, all_terms=False)
    pre = torch.nn.functional.linear(problem.x, problem.W_enc, problem.b_enc)
    assert len(problem.x) == SHAPE.n_tokens
    assert float(gate._gap(pre.double(), SHAPE.k).min()) > 1e-4


def test_the_interpreter_is_never_timed(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in (peers.Ours("triton").refuses(SHAPE, CPU) or "")


def test_peers_that_are_not_installed_are_named(monkeypatch):
    for module in ("sparsify", "sae_lens"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install eai-sparsify" in (peers.Sparsify().refuses(SHAPE, CPU) or "")
    assert "pip install sae-lens" in (peers.SaeLens().refuses(SHAPE, CPU) or "")

"""A step on a GPU reads nothing back and copies nothing there, so that a CUDA graph can capture it.

Its Python runs here on tensors that have a shape but no data, and that are not in a CPU's memory: `.item()`, the truth
of a tensor and shapes that depend on data all raise. Kernels are not launched; the memory for results is there already.
"""

from __future__ import annotations

import importlib
from unittest.mock import Mock

import pytest
import torch
from torch.overrides import TorchFunctionMode

from tide_kernels import LossOptions, LossWeights, reference
from tide_kernels.dispatch import Choice, Primitives
from tide_kernels.fused import FusedStep
from tide_kernels.options import LossArguments, Parameters
from tide_kernels.ranks import ALONE, Group, Ranks
from tide_kernels.reference import accumulator

META = torch.device("meta")
N, D, LATENTS, K, GROUPS = 1024, 64, 512, 8, 4
ALL_TERMS = {"weights": LossWeights(1.0, 1.0, 0.1, 10.0, 0.1), "paired": True, "k_aux": 4}
MSE = {"weights": LossWeights(cosine=0.0)}


class NothingFromTheHost(TorchFunctionMode):
    """Refuses tensors that are made in a CPU's memory and then copied: a capture does."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor, torch.Tensor.new_tensor)
    MOVERS = (torch.Tensor.to, torch.Tensor.copy_)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in self.MAKERS and made.device == META:
            raise RuntimeError(f"{func.__name__} copies a number to the device: use torch.full")
        given = [each.device.type for each in args if isinstance(each, torch.Tensor)]
        if func in self.MOVERS and made.device == META and "cpu" in given:
            raise RuntimeError(f"{func.__name__} copies a tensor to the device")
        return made


def triton_ops(monkeypatch):
    """The Triton backend as it prepares launches on a Hopper GPU."""
    triton = pytest.importorskip("tide_kernels.triton", reason="needs Triton")
    launch = importlib.import_module("tide_kernels.triton.launch")
    monkeypatch.setattr(launch, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(launch, "processors", lambda _: 132)
    monkeypatch.setattr(launch, "launch", lambda *_, **__: None)
    return triton


def step(backend, regime, options, monkeypatch, thresholds=False, ranks=ALONE):
    """Runs the step on tensors without data; returns the terms and the gradients."""
    module = triton_ops(monkeypatch) if backend == "triton" else reference
    choice = Choice(backend, regime, Primitives.of(module))
    monkeypatch.setattr("tide_kernels.dead.choose", lambda *_, **__: choice)
    dtype = torch.bfloat16
    tables = {name: torch.empty(LATENTS, D, dtype=dtype, device=META) for name in ("W_enc", "W_dec")}
    tables |= {name: torch.empty(GROUPS, D, dtype=dtype, device=META) for name in ("scale", "shift")}
    biases = {name: torch.empty(n, dtype=dtype, device=META) for name, n in (("b_enc", LATENTS), ("b_dec", D))}
    threshold = torch.empty(GROUPS, LATENTS, device=META) if thresholds else None
    parameters = Parameters(**tables, **biases, threshold=threshold)
    x = torch.empty(N, D, dtype=dtype, device=META)
    group = torch.empty(N, dtype=torch.int64, device=META)
    dead = torch.empty(LATENTS, dtype=torch.bool, device=META) if options.k_aux else None
    given = {name: p for name, p in parameters._asdict().items() if p is not None}
    gradients = {name: torch.empty(p.shape, dtype=accumulator(dtype), device=META) for name, p in given.items()}
    arguments = LossArguments(x, parameters, group, dead, dtype, options)
    with NothingFromTheHost():
        return FusedStep(arguments, choice, gradients, ranks=ranks).run(), gradients


@pytest.mark.parametrize("chunk", [None, 512], ids=["one chunk", "kept chunks"])
@pytest.mark.parametrize("bucket", [None, 64], ids=["masked", "in a bucket"])
@pytest.mark.parametrize("terms", [MSE, ALL_TERMS], ids=["MSE", "all terms"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "batch_topk with thresholds", "jumprelu"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_the_step_reads_nothing_back_and_copies_nothing(backend, activation, terms, bucket, chunk, regime, monkeypatch):
    name, _, thresholds = activation.partition(" with ")
    options = LossOptions(k=K, chunk=chunk, dead_bucket=bucket, regime=regime, activation=name, **terms)
    results, gradients = step(backend, regime, options, monkeypatch, bool(thresholds) or name == "jumprelu")
    assert {t.device for t in (*results, *gradients.values())} == {META}


class Second(Group):
    """The second of two ranks, whose collective operations have the shapes of real ones."""

    def __init__(self) -> None:
        self.count, self.number = 2, 1

    def summed(self, value):
        return value.clone()

    def gathered(self, value):
        return torch.stack([value, value])

    def start_sum_(self, tensor):
        tensor.mul_(2)
        return Mock()

    def sum_(self, tensors):
        for tensor in tensors:
            tensor.mul_(2)


@pytest.mark.parametrize("chunk", [None, 512], ids=["one chunk", "kept chunks"])
@pytest.mark.parametrize("shared", ["tokens", "latents", "both"])
@pytest.mark.parametrize("activation", ["topk", "batch_topk", "batch_topk with thresholds", "jumprelu"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_so_does_a_step_of_ranks_that_know_how_much_there_is(backend, activation, shared, chunk, regime, monkeypatch):
    ranks = Ranks(n_tokens=2 * N)
    if shared != "latents":
        ranks.tokens = Second()
    if shared != "tokens":
        ranks.latents, ranks._n_latents = Second(), 2 * LATENTS
    name, _, thresholds = activation.partition(" with ")
    options = LossOptions(k=K, chunk=chunk, dead_bucket=64, regime=regime, activation=name, **ALL_TERMS)
    needs = bool(thresholds) or name == "jumprelu"
    results, gradients = step(backend, regime, options, monkeypatch, needs, ranks)
    assert {t.device for t in (*results, *gradients.values())} == {META}


def planted(what, regime, monkeypatch):
    """Runs a step whose decoder first does ``what`` with its values."""
    decode = reference.decode_dense if regime == "dense" else reference.gather
    monkeypatch.setattr(reference, decode.__name__, lambda values, *rest: (what(values), decode(values, *rest))[1])
    step("reference", regime, LossOptions(k=K, regime=regime, **MSE), monkeypatch)


READ_BACKS = {"item": lambda t: t.sum().item(), "truth": lambda t: bool(t.any()), "size": lambda t: t.nonzero()}


@pytest.mark.parametrize("read_back", READ_BACKS.values(), ids=READ_BACKS)
def test_a_read_back_would_be_noticed(read_back, regime, monkeypatch):
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        planted(read_back, regime, monkeypatch)


COPIES = {"new_tensor": lambda t: t.new_tensor(1.0), "tensor": lambda t: torch.tensor(1.0, device=t.device)}
COPIES |= {"to": lambda t: torch.ones(()).to(t.device), "copy_": lambda t: t.copy_(torch.ones(t.shape))}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_would_be_noticed(copy, regime, monkeypatch):
    with pytest.raises(RuntimeError, match=r"copies a \w+ to the device"):
        planted(copy, regime, monkeypatch)

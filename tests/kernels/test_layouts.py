"""Every tensor argument of every public op in every layout: results equal the reference's for contiguous copies.

Ops and arguments come from `tide_kernels.__all__` and the signatures, so a new one without a case fails here.
Numbers are multiples of 1/8, which makes pre-activations exact: the selection cannot depend on the order of sums.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import tide_kernels
from tests.helpers.layouts import LAYOUTS, Calls, dyadic, overlaps_itself, plain, tensor_arguments
from tide_kernels import LossWeights, backend_status
from tide_kernels.testing import assert_close

N, D, LATENTS, K, GROUPS = 8, 5, 12, 3, 2
# Float32, relative to the RMS: sums of at most N D LATENTS numbers, possibly in another order.
TOLERANCE = 1e-5

OPS = {
    name: value
    for name, value in vars(tide_kernels).items()
    if name in tide_kernels.__all__ and inspect.isfunction(value) and tensor_arguments(value)
}


@dataclass
class Case:
    """A call of a public op: its tensors and its options. ``fixed`` tensors keep their layout."""

    op: str
    tensors: Callable[[], dict[str, Tensor]]
    options: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    has_regimes: bool = True
    buffers: bool = False  # gradients go into buffers
    backends: tuple[str, ...] = ("reference", "native", "triton")


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def modulation() -> dict[str, Tensor]:
    group = torch.arange(N) % GROUPS
    return {"scale": dyadic(GROUPS, D, seed=2), "shift": dyadic(GROUPS, D, seed=3), "group": group}


def encoder() -> dict[str, Tensor]:
    return {"W_enc": dyadic(LATENTS, D, seed=4), "b_enc": dyadic(LATENTS, seed=5)}


def decoder() -> dict[str, Tensor]:
    return {"W_dec": dyadic(LATENTS, D, seed=6), "b_dec": dyadic(D, seed=7)}


def tokens() -> dict[str, Tensor]:
    return {"x": dyadic(N, D, seed=1)} | modulation()


def code() -> dict[str, Tensor]:
    indices = torch.arange(N * K).view(N, K) * 5 % LATENTS
    indices[::3, -1] = -1
    return {"values": dyadic(N, K, seed=8), "indices": indices.to(torch.int32)} | decoder()


def training() -> dict[str, Tensor]:
    return tokens() | encoder() | decoder() | {"dead": torch.arange(LATENTS) % 3 == 0}


def thresholds(groups: int = GROUPS) -> dict[str, Tensor]:
    return {"threshold": dyadic(groups, LATENTS, seed=10).abs()}


# Normalised tokens are not multiples of 1/8: normal weights keep rounding from making ties.
NORMALISED = {"W_enc": normal(LATENTS, D), "b_enc": normal(LATENTS)}
TERMS = {
    "k": K,
    "k_aux": 2,
    "paired": True,
    "weights": LossWeights(mse=1.5, cosine=0.7, temporal=0.3, sparsity=20.0, auxk=0.4),
    "delta": 0.5,
}
JUMP = TERMS | {"activation": "jumprelu", "bandwidth": 1.5, "chunk": 4}
CASES = {
    "modulate": Case("modulate", tokens, has_regimes=False),
    "modulate, layer norm": Case("modulate", tokens, {"layer_norm": True}, has_regimes=False),
    "encode_topk": Case("encode_topk", lambda: tokens() | encoder(), {"k": K}),
    "encode_topk, layer norm": Case("encode_topk", tokens, {"k": K, "layer_norm": True}, NORMALISED),
    "encode_topk, single launch": Case(
        "encode_topk", lambda: tokens() | encoder(), {"k": K, "path": "single"}, has_regimes=False, backends=("triton",)
    ),
    "encode_topk, not modulated": Case("encode_topk", lambda: {"x": tokens()["x"]} | encoder(), {"k": K}),
    "encode_threshold": Case("encode_threshold", lambda: tokens() | encoder() | thresholds(), {"k": K}),
    "decode": Case("decode", code),
    "tide_loss": Case("tide_loss", training, TERMS),
    "tide_loss, chunks": Case("tide_loss", training, TERMS | {"chunk": 4}, backends=("reference", "native")),
    "tide_loss, BatchTopK": Case("tide_loss", training, TERMS | {"activation": "batch_topk", "chunk": 4}),
    "tide_loss, BatchTopK with thresholds": Case(
        "tide_loss",
        lambda: training() | {"threshold": thresholds()["threshold"] + 0.5},
        JUMP | {"activation": "batch_topk"},
    ),
    "tide_loss, JumpReLU": Case("tide_loss", lambda: training() | thresholds(), JUMP),
    "tide_loss, target": Case("tide_loss", lambda: training() | {"target": dyadic(N, D, seed=12)}, TERMS),
    "tide_loss, prefixes": Case(
        "tide_loss", lambda: training() | thresholds(), JUMP | {"prefixes": (2, 7)}, backends=("reference", "native")
    ),
    "tide_loss, into buffers": Case("tide_loss", training, TERMS | {"chunk": 4}, buffers=True),
    "tide_loss, buffers that start from the weights": Case(
        "tide_loss", training, TERMS | {"start": 0.5}, buffers=True, backends=("native",)
    ),
}


#: Interpreted kernels are slow, and these runs launch only kernels that others launch too.
SLOW = {
    ("encode_topk, layer norm", "triton", "dense"),
    ("encode_topk, not modulated", "triton", "sparse"),
    ("tide_loss", "triton", "sparse"),
    ("tide_loss, into buffers", "triton", "dense"),
}
RUNS = [
    pytest.param(
        name,
        backend,
        regime,
        id=", ".join(filter(None, (name, backend, regime))),
        marks=[pytest.mark.slow] if (name, backend, regime) in SLOW else [],
    )
    for name, case in CASES.items()
    for backend in case.backends
    for regime in (("sparse", "dense") if case.has_regimes else (None,))
]


@pytest.fixture(autouse=True)
def _backend_runs_here(request: pytest.FixtureRequest) -> None:
    backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
    reason = backend_status()[backend] if backend else None
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def leaves(tensors: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    """The tensors with respect to which the op differentiates, as leaves of a graph."""
    differentiable = [name for name, t in tensors.items() if t.is_floating_point()]
    constant = {"tide_loss": ("x", "target"), "encode_threshold": ("threshold",)}.get(case.op, ())
    return {name: tensors[name].detach().requires_grad_() for name in differentiable if name not in constant}


def results(
    case: Case, tensors: dict[str, Tensor], backend: str, regime: str | None, probe: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Outputs and gradients; ``probe`` is the incoming gradient of an output."""
    tensors = case.fixed | tensors
    given = leaves(tensors, case)
    options = case.options | {"backend": backend} | ({"regime": regime} if regime else {})
    if backend == "reference":
        options.pop("path", None)
    if case.buffers:
        # Not 0, so that the test notices if a buffer is overwritten instead of added to.
        buffers = {name: torch.full(t.shape, 0.5) for name, t in given.items()}
        terms = OPS[case.op](**tensors, **options, gradients=buffers)
        return terms._asdict() | {f"gradient of {name}": buffer for name, buffer in buffers.items()}
    output = OPS[case.op](**(tensors | given), **options)
    outputs = {"result": output} if isinstance(output, Tensor) else dict(enumerate(output))
    graded = {name: t for name, t in outputs.items() if t.requires_grad}
    incoming = [probe(f"grad of {name}", plain(t)) for name, t in graded.items()]
    gradients = torch.autograd.grad(list(graded.values()), list(given.values()), incoming)
    return {str(name): t.detach() for name, t in outputs.items()} | {
        f"gradient of {name}": gradient for name, gradient in zip(given, gradients, strict=True)
    }


def laid(case: Case, layout_of: dict[str, str]) -> dict[str, Tensor]:
    tensors = case.tensors()
    return {name: LAYOUTS[layout_of[name]](t) if name in layout_of else t for name, t in tensors.items()}


def check(name: str, backend: str, regime: str | None, layout_of: dict[str, str]) -> None:
    """``layout_of`` maps tensors' names to layouts; "grad" stands for incoming gradients."""
    case = CASES[name]
    tensors = laid(case, layout_of)
    incoming: dict[str, Tensor] = {}

    def strided(key: str, output: Tensor) -> Tensor:
        values = dyadic(output.numel(), seed=11).view(output.shape)
        incoming[key] = LAYOUTS[layout_of["grad"]](values) if "grad" in layout_of else values
        return incoming[key]

    got = results(case, tensors, backend, regime, strided)
    copies = {key: plain(t) for key, t in tensors.items()}
    want = results(case, copies, "reference", regime, lambda key, _: plain(incoming[key]))
    for key, expected in want.items():
        assert_close(got[key], expected, TOLERANCE, f"{key}, {layout_of}")
    for key, tensor in tensors.items():
        assert torch.equal(tensor, copies[key]), f"{key} was written to"


def together(case: Case, backend: str) -> Iterator[dict[str, str]]:
    """All tensors at once, each in a different layout, until each has had every layout, or five of the nine where
    kernels are interpreted, which is slow: other tensors have had the rest."""
    names, kinds = [*case.tensors(), "grad"], list(LAYOUTS)
    for turn in range(0, len(kinds), 2 if backend == "triton" else 1):
        yield {name: kinds[(turn + 2 * place) % len(kinds)] for place, name in enumerate(names)}


@pytest.mark.parametrize(("name", "backend", "regime"), RUNS)
def test_layouts_do_not_change_results(name, backend, regime):
    for layout_of in together(CASES[name], backend):
        check(name, backend, regime, layout_of)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend", "regime"), RUNS)
def test_each_argument_alone_in_each_layout(name, backend, regime):
    for argument in [*CASES[name].tensors(), "grad"]:
        for kind in LAYOUTS:
            check(name, backend, regime, {argument: kind})


def test_every_tensor_argument_of_every_public_op_has_its_case():
    covered: dict[str, set[str]] = {}
    for case in CASES.values():
        covered.setdefault(case.op, set()).update(case.tensors(), {"gradients"} if case.buffers else ())
    assert covered == {name: set(tensor_arguments(op)) - {"squares"} for name, op in OPS.items()}  # a scalar


def test_the_cases_call_every_op_of_the_library():
    with Calls() as calls:
        for case in CASES.values():
            results(case, case.tensors(), "reference", None, lambda _, output: torch.ones_like(output))
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("tide_kernels::")}
    assert registered
    assert registered <= calls.names


@pytest.mark.parametrize("kind", [kind for kind in LAYOUTS if kind != "at an offset"])
@pytest.mark.parametrize("parameter", ["W_enc", "b_enc", "W_dec", "b_dec", "scale", "shift"])
def test_a_buffer_that_is_no_plain_memory_is_refused(parameter, kind):
    tensors = training()
    buffer = LAYOUTS[kind](torch.zeros_like(tensors[parameter]))
    with pytest.raises(ValueError, match=rf"gradients\['{parameter}'\] is .*: pass memory of its own") as raised:
        tide_kernels.tide_loss(**tensors, **TERMS, gradients={parameter: buffer})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shared", [name for name in training() if name not in ("group", "dead")])
def test_a_buffer_in_the_memory_of_an_argument_is_refused(shared):
    tensors = training()
    memory = torch.zeros(2 * LATENTS * D)
    buffer = memory[: LATENTS * D].view(LATENTS, D)
    values = tensors[shared]
    start = LATENTS * D - 1  # the buffer's last element is the argument's first
    tensors[shared] = memory[start : start + values.numel()].view(values.shape).copy_(values)
    with pytest.raises(ValueError, match=rf"gradients\['W_enc'\] lies in the memory of {shared}: pass memory of"):
        tide_kernels.tide_loss(**tensors, **TERMS, gradients={"W_enc": buffer})


def test_a_buffer_in_the_memory_of_another_buffer_is_refused():
    buffer = torch.zeros(LATENTS, D)
    with pytest.raises(ValueError, match=r"gradients\['W_dec'\] lies in the memory of gradients\['W_enc'\]"):
        tide_kernels.tide_loss(**training(), **TERMS, gradients={"W_enc": buffer, "W_dec": buffer})


def test_buffers_side_by_side_in_one_memory_are_taken():
    tensors = training()
    shapes = {name: tensors[name].shape for name in ("W_enc", "W_dec", "b_enc")}
    memory = torch.zeros(sum(shape.numel() for shape in shapes.values()))
    parts = memory.split([shape.numel() for shape in shapes.values()])
    buffers = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    apart = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for gradients in (buffers, apart):
        tide_kernels.tide_loss(**tensors, **TERMS, gradients=gradients, backend="reference")
    assert all(torch.equal(buffers[name], apart[name]) for name in shapes)


def test_every_layout_is_the_view_it_says():
    values = torch.arange(12.0).view(4, 3)
    for kind, layout in LAYOUTS.items():
        view = layout(values)
        assert not (view.is_contiguous() and view.storage_offset() == 0 and not view.is_neg()), kind
        assert overlaps_itself(view) or torch.equal(view, values), kind

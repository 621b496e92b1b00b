"""An adapter for each contender: a training step, forward and backward, on given tokens and parameters.

All of them get the same problem and, on a GPU, the same bfloat16 autocast around the forward pass. The peers
compute the mean squared error. This package computes that, and in a second step all of its loss terms, with timestep
modulation and the auxiliary term, which no peer has.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes import ALL_TERMS, MSE, Problem, Shape
from tide_kernels import BackendError, backend_status, tide_loss
from tide_kernels.dispatch import choose


@dataclass
class Step:
    """A prepared training step. ``leaves`` are its parameters, by this package's names."""

    loss: Callable[[], Tensor]
    leaves: dict[str, Tensor]
    autocast: torch.dtype | None = None
    transposed: frozenset[str] = field(default_factory=frozenset)  # leaves of shape [d_model, n_latents]

    def clear(self) -> None:
        for leaf in self.leaves.values():
            leaf.grad = None

    def run(self) -> None:
        """Forward and backward, into fresh gradients, as after ``optimizer.zero_grad()``."""
        self.clear()
        self.accumulate()

    def accumulate(self) -> None:
        """Forward and backward, adding to existing gradients."""
        with self._precision():
            loss = self.loss()
        loss.backward()

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the last run, in this package's layout."""
        found = {name: leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        return {name: grad.T if name in self.transposed else grad for name, grad in found.items()}

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(next(iter(self.leaves.values())).device.type, self.autocast)


@dataclass
class BufferedStep(Step):
    """A step that adds to buffers: ``loss`` computes the gradients too. Zeroing the buffers is part of the run."""

    buffers: dict[str, Tensor] = field(default_factory=dict)

    def clear(self) -> None:
        """Nothing: the buffers are made once, as ``zero_grad(set_to_none=False)`` keeps them."""

    def run(self) -> None:
        torch._foreach_zero_(list(self.buffers.values()))
        self.accumulate()

    def accumulate(self) -> None:
        with self._precision():
            self.loss()

    def gradients(self) -> dict[str, Tensor]:
        return self.buffers


class Contender(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def all_terms(self) -> bool:
        """Whether it computes this package's whole loss, not only the squared error."""

    def refuses(self, shape: Shape, device: torch.device) -> str | None:
        """Why it cannot run this shape here, or None."""

    def prepare(self, problem: Problem, autocast: torch.dtype | None) -> Step:
        """Its step on this problem."""


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def interpreted() -> bool:
    """Whether Triton kernels would run in its interpreter, which is not to be timed."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


@dataclass(frozen=True)
class Ours:
    """This package's fused step, by one backend; with ``buffered`` into buffers (``gradients=``), as in training."""

    backend: str
    all_terms: bool = False
    regime: str = "auto"
    buffered: bool = False

    @property
    def name(self) -> str:
        regime = "" if self.regime == "auto" else f" {self.regime}"
        return f"tide {self.backend}{regime}{', all terms' if self.all_terms else ''}"

    def refuses(self, shape: Shape, device: torch.device) -> str | None:
        if self.backend == "triton" and interpreted():
            return "Triton's interpreter is for tests, not for timing: unset TRITON_INTERPRET"
        try:
            dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
            choose(self.backend, "auto", device=device, dtype=dtype, n_latents=shape.n_latents, k=shape.k)
        except BackendError as error:
            return str(error)
        return None

    def prepare(self, problem: Problem, autocast: torch.dtype | None) -> Step:
        tensors = problem.weights() | (problem.modulation() if self.all_terms else {})
        options: dict[str, Any] = {"weights": MSE}
        if self.all_terms:
            options = {"weights": ALL_TERMS, "paired": True, "group": problem.group}
            options |= {"dead": problem.dead, "k_aux": problem.k_aux}
        options |= {"backend": self.backend, "regime": self.regime}
        leaves = {name: _leaf(tensor) for name, tensor in tensors.items()}
        options |= leaves
        if not self.buffered:
            return Step(lambda: tide_loss(problem.x, k=problem.k, **options).total, leaves, autocast)
        if self.all_terms:
            options["dead_bucket"] = problem.dead_bucket
        buffers = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        options["gradients"] = buffers
        return BufferedStep(
            lambda: tide_loss(problem.x, k=problem.k, **options).total, leaves, autocast, buffers=buffers
        )


@dataclass(frozen=True)
class DenseTorch:
    """The step written in plain PyTorch: dense products, ``torch.topk``, scatter. ``compiler`` is a backend of
    `torch.compile`, such as "inductor"; None runs it eagerly."""

    compiler: str | None = None
    all_terms: bool = False

    @property
    def name(self) -> str:
        return "dense torch" if self.compiler is None else "dense torch, compiled"

    def refuses(self, shape: Shape, device: torch.device) -> str | None:
        return None

    def prepare(self, problem: Problem, autocast: torch.dtype | None) -> Step:
        leaves = {name: _leaf(tensor) for name, tensor in problem.weights().items()}
        x, k = problem.x, problem.k

        def loss(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
            pre = F.linear(x, W_enc, b_enc).relu()
            top = pre.topk(k, dim=1, sorted=False)
            z = torch.zeros_like(pre).scatter(1, top.indices, top.values)
            return (z @ W_dec + b_dec - x).square().mean()

        if self.compiler is not None:
            torch._dynamo.reset()  # each shape is compiled for itself, however many there were before
            loss = torch.compile(loss, backend=self.compiler, fullgraph=True, dynamic=False)
        return Step(lambda: loss(x, **leaves), leaves, autocast)


def _missing(module: str, package: str) -> str | None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{package} cannot be imported ({' '.join(str(error).split())}): pip install {package}"
    return None


@dataclass(frozen=True)
class Sparsify:
    """EleutherAI's sparsify: its Triton decoder on a GPU, embedding bags elsewhere."""

    name: str = "eai-sparsify"
    all_terms: bool = False

    def refuses(self, shape: Shape, device: torch.device) -> str | None:
        if device.type == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import
        missing = _missing("sparsify", "eai-sparsify")
        if missing is None and shape.n_latents % 8 and device.type != "cpu":
            return "its kernels need a multiple of 8 latents"
        # Its encoder's backward holds a float32 tensor of this many bytes.
        expanded = 4 * shape.n_tokens * shape.k * shape.d_model
        if missing is None and expanded > _memory(device):
            return f"its backward holds a tensor of {expanded / 2**30:.0f} GiB, more than there is"
        return missing

    def prepare(self, problem: Problem, autocast: torch.dtype | None) -> Step:
        from sparsify import SparseCoder, SparseCoderConfig

        x = problem.x
        n_latents, d_model = problem.W_enc.shape
        config = SparseCoderConfig(num_latents=n_latents, k=problem.k)
        coder = SparseCoder(d_model, config, device=str(x.device), dtype=torch.float32)
        names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
        leaves = _load(coder, {theirs: problem.weights()[ours] for ours, theirs in names.items()})
        # The squared error divided by this is the mean squared error.
        elements = torch.tensor(float(x.numel()), device=x.device)
        # Without b_dec, which is also subtracted from the input, so its gradient is that of another function.
        step = {ours: leaves[theirs] for ours, theirs in names.items() if ours != "b_dec"}
        return Step(lambda: coder(x, total_variance=elements).fvu, step, autocast)


@dataclass(frozen=True)
class SaeLens:
    """SAELens: dense activations, or its COO tensors, which need float32 without autocast."""

    coo: bool = False
    all_terms: bool = False

    @property
    def name(self) -> str:
        return "sae-lens COO" if self.coo else "sae-lens"

    def refuses(self, shape: Shape, device: torch.device) -> str | None:
        if self.coo and device.type != "cpu":
            return "its sparse tensors do not run under bfloat16 autocast"
        return _missing("sae_lens", "sae-lens")

    def prepare(self, problem: Problem, autocast: torch.dtype | None) -> Step:
        from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.saes.sae import TrainStepInput

        x = problem.x
        n_latents, d_model = problem.W_enc.shape
        config = TopKTrainingSAEConfig(
            d_in=d_model,
            d_sae=n_latents,
            k=problem.k,
            device=str(x.device),
            dtype="float32",
            rescale_acts_by_decoder_norm=False,
            use_sparse_activations=self.coo,
            apply_b_dec_to_input=False,
        )
        sae = TopKTrainingSAE(config)
        weights = problem.weights()
        leaves = _load(sae, weights | {"W_enc": weights["W_enc"].T.contiguous()})
        batch = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        return Step(
            lambda: sae.training_forward_pass(batch).loss / d_model,  # its loss is a sum over the width
            {name: leaves[name] for name in weights},
            autocast,
            frozenset({"W_enc"}),
        )


def _load(module: torch.nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies ``tensors`` into the module's parameters and returns these."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return dict(parameters)


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34


def ours() -> list[Contender]:
    """Every backend of this package, including those that cannot run here, with the squared error and all terms."""
    return [Ours(backend, all_terms) for all_terms in (False, True) for backend in backend_status()]


def peers() -> list[Contender]:
    return [DenseTorch(), Sparsify(), SaeLens(), SaeLens(coo=True)]

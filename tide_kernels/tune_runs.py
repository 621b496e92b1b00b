"""How `tide_kernels.tune` runs each kernel: its operands at a shape, and a call that returns everything that the
kernel writes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Results = tuple[Tensor, ...]
Run = Callable[[], Results]

GROUP_TOKENS = 256  # tokens of a timestep group


@dataclass(frozen=True)
class Shape:
    n_tokens: int
    d_model: int
    n_latents: int
    k: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """From ``N,d,n,k``."""
        try:
            return cls(*map(int, text.split(",")))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a valid shape: write N,d,n,k") from error

    @property
    def group_length(self) -> int:
        """Columns of a group where selection is by groups, and the fewest where it is not."""
        from tide_kernels.triton.prune import group_length

        return group_length(self.n_latents, self.k) or 2

    @property
    def searched(self) -> int:
        """Columns that `select` searches: those of the chosen groups where selection is by groups, else all."""
        from tide_kernels.triton.prune import group_length

        length = group_length(self.n_latents, self.k)
        return self.n_latents if length is None else self.k * length

    def __str__(self) -> str:
        return f"N={self.n_tokens} d={self.d_model} n={self.n_latents} k={self.k}"


# The paper's shape, a sparse one, and other lengths of a row for the selection.
SHAPES = (
    Shape(16384, 1152, 18432, 922),
    Shape(16384, 1152, 18432, 32),
    Shape(16384, 1152, 4608, 230),
    Shape(16384, 1152, 73728, 64),
)


class Operands:
    """The tensors of a shape, each made on first use."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=self.generator, device=self.device) * scale).to(self.dtype)

    @cached_property
    def x(self) -> Tensor:
        return self.normal(self.shape.n_tokens, self.shape.d_model)

    @cached_property
    def grad(self) -> Tensor:
        return self.normal(self.shape.n_tokens, self.shape.d_model, scale=0.1)

    @cached_property
    def W(self) -> Tensor:
        return self.normal(self.shape.n_latents, self.shape.d_model, scale=self.shape.d_model**-0.5)

    @cached_property
    def b(self) -> Tensor:
        return self.normal(self.shape.n_latents, scale=0.1)

    @cached_property
    def scale(self) -> Tensor:
        return self.normal(max(1, self.shape.n_tokens // GROUP_TOKENS), self.shape.d_model, scale=0.1)

    @cached_property
    def group(self) -> Tensor:
        tokens = torch.arange(self.shape.n_tokens, device=self.device)
        return tokens * len(self.scale) // self.shape.n_tokens

    @cached_property
    def x_mod(self) -> Tensor:
        return backend().modulate(self.x, self.scale, self.scale, self.group, False, self.dtype)

    @cached_property
    def pre(self) -> Tensor:
        return torch.nn.functional.linear(self.x, self.W, self.b)

    @cached_property
    def code(self) -> tuple[Tensor, Tensor]:
        return backend().select(self.pre, self.shape.k)

    @cached_property
    def layout(self) -> Any:
        return backend().transpose_selected(self.code[1], self.shape.n_latents)

    @cached_property
    def z(self) -> Tensor:
        z = self.pre.clone()
        backend().keep_top_(z, self.shape.k)
        return z

    @cached_property
    def threshold(self) -> Tensor:
        """What about k entries of a row exceed, for each latent."""
        rows = self.pre[:64].float()
        level = rows.kthvalue(self.shape.n_latents - self.shape.k, dim=1).values.mean()
        return level.expand(1, self.shape.n_latents).contiguous()

    @cached_property
    def code_above(self) -> tuple[Tensor, Tensor, Tensor]:
        return backend().select_above(self.pre, self.threshold, None, None, self.places)

    @property
    def places(self) -> int:
        return min(4 * self.shape.k, self.shape.n_latents)

    def sums(self) -> Tensor:
        return torch.zeros(self.shape.n_latents, self.shape.d_model, device=self.device)


def backend() -> Any:
    from tide_kernels import triton

    return triton


def _keep_top(o: Operands) -> Run:
    scratch = torch.empty_like(o.pre)

    def in_place() -> Results:  # every candidate pays for the same copy
        return *backend().keep_top_with_sums_(scratch.copy_(o.pre), o.shape.k, True, 0.1), scratch

    return in_place


def _select(o: Operands) -> Run:
    from tide_kernels.triton.select import select_directly

    pre = o.pre[:, : o.shape.searched].contiguous()
    return lambda: select_directly(pre, o.shape.k)


def _prune(o: Operands) -> Run:
    from tide_kernels.triton.prune import select_pruned
    from tide_kernels.triton.select import select_directly

    return lambda: select_pruned(o.pre, o.shape.k, o.shape.group_length, select_directly)


def _scatter(o: Operands) -> Run:
    out = o.sums()

    def run() -> Results:
        backend().scatter(o.code[0], o.layout, o.grad, out.zero_())
        return (out,)

    return run


def _backward_latents(o: Operands) -> Run:
    grad_W_dec, grad_W_enc = o.sums(), o.sums()
    grad_b_enc = torch.zeros(o.shape.n_latents, device=o.device)

    def run() -> Results:
        sums = tuple(total.zero_() for total in (grad_W_dec, grad_W_enc, grad_b_enc))
        return backend().backward_latents(*o.code, o.layout, o.grad, o.x, o.W, None, *sums), *sums

    return run


def _used(layout: Any) -> Results:
    """What is defined of a layout."""
    used = layout.offsets[-1]
    places = torch.arange(len(layout.places), device=used.device) < used
    return (*(t.masked_fill(~places, 0) for t in layout[:2]), *layout[2:])


def _masked_gradient(o: Operands) -> Run:
    grad_b_enc = torch.zeros(o.shape.n_latents, device=o.device)
    fired = torch.zeros(o.shape.n_latents, dtype=torch.int64, device=o.device)

    def run() -> Results:
        sums = (grad_b_enc.zero_(), fired.zero_())
        return backend().masked_gradient(o.grad, o.W, o.z, 0.0, None, 1.0, *sums), *sums

    return run


def _select_above(o: Operands) -> Run:
    return lambda: backend().select_above(o.pre, o.threshold, None, None, o.places)


def _keep_above(o: Operands) -> Run:
    out = torch.empty_like(o.pre)
    return lambda: (backend().keep_above(o.pre, o.threshold, None, None, out), out)


def _key_histogram(o: Operands) -> Run:
    sixteen = o.dtype.itemsize == 2
    counts = torch.zeros(2 ** (15 if sixteen else 16), dtype=torch.int64, device=o.device)

    def run() -> Results:
        backend().key_histogram_(o.pre, counts.zero_(), 0 if sixteen else 15, None)
        return (counts,)

    return run


def _near_sums(o: Operands) -> tuple[Tensor, Tensor]:
    sums = torch.zeros(1, o.shape.n_latents, device=o.device)
    return sums, sums.long()


def _near_places(o: Operands) -> Run:
    sums, near = _near_sums(o)
    values, indices, _ = o.code_above
    layout, slopes = backend().transpose_selected(indices, o.shape.n_latents), values.float()

    def run() -> Results:
        results = (sums.zero_(), near.zero_())
        backend().add_near_places(slopes, values, indices, layout, o.threshold, None, 0.3, *results)
        return results

    return run


def _near_gradient(o: Operands) -> Run:
    sums, near = _near_sums(o)

    def run() -> Results:
        results = (sums.zero_(), near.zero_())
        encoder = (sums.new_zeros(o.shape.n_latents), near.new_zeros(o.shape.n_latents))
        options = (o.pre, o.threshold, None, 0.3, *results)
        return backend().near_gradient(o.grad, o.W, o.z, 0.0, *encoder, *options), *encoder, *results

    return run


def _encoder_gradients(o: Operands) -> Run:
    grad_W = o.sums()
    tables = torch.zeros(2, *o.scale.shape, device=o.device)

    def run() -> Results:
        sums = (grad_W.zero_(), *tables.zero_())
        backend().encoder_gradients(o.z, o.x, o.x_mod, o.scale, o.scale, o.group, False, o.W, *sums)
        return sums

    return run


def _modulation_gradients(o: Operands) -> Run:
    grad = o.grad.float()
    tables = torch.zeros(2, *o.scale.shape, device=o.device)

    def run() -> Results:
        sums = tuple(tables.zero_())
        backend().modulation_gradients(grad, o.x, o.group, *sums)
        return sums

    return run


def _pair_differences(o: Operands) -> Run:
    values, indices = o.code[0].float(), o.code[1]
    return lambda: backend().pair_differences(values, indices)


def _code_terms(o: Operands) -> Run:
    values, soft = o.code[0].float(), torch.ones((), device=o.device)
    _, differences = backend().pair_differences(values, o.code[1])

    def run() -> Results:
        slopes = backend().code_slopes(values, differences, 0.3, soft, 0.1, o.shape.n_latents)
        return backend().soft_count(values, o.shape.n_latents, 0.1), slopes

    return run


def _product(o: Operands) -> Run:
    from tide_kernels.triton.product import product

    out = torch.empty_like(o.pre)

    def run() -> Results:
        product(o.x, o.W.T, out, bias=o.b)
        return (out,)

    return run


def _loss(o: Operands) -> Run:
    def run() -> Results:
        found = backend().reconstruction_loss(o.x, o.grad.float(), o.grad[0], 1.0, 1.0, o.dtype, False)
        return found.squared, found.distance, found.gradient

    return run


def _misfit(o: Operands) -> Run:
    rebuilt, error = o.x.float(), o.grad.float()
    return lambda: backend().misfit(rebuilt, error, 0.5, o.dtype)


# How to run each kernel, and the size by which `configs` looks it up; ordered by their share of a step's time.
RUNNERS: dict[str, tuple[Callable[[Operands], Run], str]] = {
    "keep_top": (_keep_top, "n_latents"),
    "select": (_select, "searched"),
    "prune": (_prune, "group_length"),
    "masked_gradient": (_masked_gradient, "d_model"),
    "encoder_gradients": (_encoder_gradients, "d_model"),
    "modulation_gradients": (_modulation_gradients, "d_model"),
    "near_gradient": (_near_gradient, "n_latents"),
    "key_histogram": (_key_histogram, "n_latents"),
    "threshold_rows": (_keep_above, "n_latents"),
    "select_above": (_select_above, "n_latents"),
    "near_places": (_near_places, "n_latents"),
    "pre_activations": (lambda o: lambda: (backend().pre_activations(o.x, o.W, o.b),), "d_model"),
    "backward_latents": (_backward_latents, "d_model"),
    "gather": (lambda o: lambda: (backend().gather(*o.code, o.W),), "d_model"),
    "encode": (
        lambda o: lambda: backend().encode(o.x, o.scale, o.scale, o.group, False, o.W, o.b, o.shape.k),
        "d_model",
    ),
    "reconstruction_loss": (_loss, "d_model"),
    "misfit": (_misfit, "d_model"),
    "code_sums": (lambda o: lambda: backend().code_sums(o.z, True, 0.1), "n_latents"),
    "modulate": (
        lambda o: lambda: (backend().modulate(o.x, o.scale, o.scale, o.group, False, o.dtype),),
        "d_model",
    ),
    "scatter": (_scatter, "d_model"),
    "transpose": (lambda o: lambda: _used(backend().transpose_selected(o.code[1], o.shape.n_latents)), "n_latents"),
    "pair_differences": (_pair_differences, "k"),
    "code_terms": (_code_terms, "k"),
    "sampled": (lambda o: lambda: (backend().sampled(o.grad, o.W, o.code[1]),), "d_model"),
    "product": (_product, "d_model"),
}
KERNELS = tuple(RUNNERS)
SPARSE = (
    "select",
    "prune",
    "select_above",
    "near_places",
    "backward_latents",
    "gather",
    "scatter",
    "sampled",
    "transpose",
    "pair_differences",
    "code_terms",
)
DENSE = ("keep_top", "threshold_rows", "near_gradient", "masked_gradient", "encoder_gradients", "code_sums")
# By which dtype `configs` looks up a kernel whose first operand has not that of the tokens: indices, or float32.
DTYPES = {
    "transpose": torch.int32,
    "modulation_gradients": torch.float32,
    "pair_differences": torch.float32,
    "code_terms": torch.float32,
    "misfit": torch.float32,
}

"""What each kernel of a training step has to do at least: bytes moved and operations of matrix products.

Every input is read once and every result written once; sums over tiles, padding and rereading are not counted, nor
is arithmetic outside matrix products, which overlaps with memory traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.shapes import GROUPS, Shape

_SUM = 4  # bytes of a float32 sum
_INDEX = 4  # bytes of an int32 index

REGIMES = ("dense", "sparse")


@dataclass(frozen=True)
class Work:
    """Bytes and operations of one kernel."""

    flops: float = 0  # of matrix products
    streamed: float = 0  # bytes read or written once
    gathered: float = 0  # bytes of rows read by index, each as often as it is named
    table: float = 0  # bytes of the table that these rows are in

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.streamed + other.streamed,
            self.gathered + other.gathered,
            self.table + other.table,
        )


@dataclass(frozen=True)
class Case:
    """A training step: its shape, and what decides which kernels it takes and what they move."""

    shape: Shape
    regime: str  # one of REGIMES
    all_terms: bool = False  # of the loss, instead of the squared error alone
    itemsize: int = 2  # bytes of the compute dtype
    groups: int = GROUPS  # of tokens that share scale and shift

    @property
    def auxiliary(self) -> Case:
        """The auxiliary term's own step: an eighth of the latents is dead, as in `benchmarks.shapes.make_problem`, and
        half as many as k are selected among them."""
        shape = self.shape
        few = replace(shape, n_latents=max(1, shape.n_latents // 8), k=max(1, shape.k // 2))
        return replace(self, shape=few, all_terms=False)


def _tokens(case: Case, itemsize: int) -> int:
    """Bytes of ``[n_tokens, d_model]``."""
    return case.shape.n_tokens * case.shape.d_model * itemsize


def _latents(case: Case) -> int:
    """Bytes of ``[n_tokens, n_latents]``."""
    return case.shape.n_tokens * case.shape.n_latents * case.itemsize


def _weights(case: Case, itemsize: int) -> int:
    """Bytes of ``[n_latents, d_model]``."""
    return case.shape.n_latents * case.shape.d_model * itemsize


def _code(case: Case, itemsize: int) -> int:
    """Bytes of ``[n_tokens, k]``."""
    return case.shape.n_tokens * case.shape.k * itemsize


def _product(case: Case) -> int:
    """Operations of a product with ``[n_tokens, n_latents]``; all of a step's have the same."""
    return 2 * case.shape.n_tokens * case.shape.d_model * case.shape.n_latents


def modulate(case: Case) -> Work:
    """x, and scale and shift of every group, to x_mod."""
    tables = 2 * case.groups * case.shape.d_model * case.itemsize
    return Work(streamed=2 * _tokens(case, case.itemsize) + tables)


def pre_activations(case: Case) -> Work:
    """``x_mod W_enc^T + b_enc``."""
    e = case.itemsize
    return Work(flops=_product(case), streamed=_tokens(case, e) + _weights(case, e) + _latents(case))


def keep_top(case: Case) -> Work:
    """The selection in place: reads and writes every pre-activation."""
    return Work(streamed=2 * _latents(case))


def select(case: Case) -> Work:
    """The compact selection: reads every pre-activation, writes values and indices."""
    return Work(streamed=_latents(case) + _code(case, case.itemsize + _INDEX))


def code_sums(case: Case) -> Work:
    """The sums of the temporal and the sparsity term: reads the code."""
    return Work(streamed=_latents(case) if case.regime == "dense" else _code(case, case.itemsize + _INDEX))


def decode_dense(case: Case) -> Work:
    """``z W``, float32."""
    streamed = _latents(case) + _weights(case, case.itemsize) + _tokens(case, _SUM)
    return Work(flops=_product(case), streamed=streamed)


def reconstruction_loss(case: Case) -> Work:
    """x and x_hat to the gradient, which is float32 in the sparse regime, and with all terms to the float32 error."""
    written = (case.itemsize if case.regime == "dense" else _SUM) + case.all_terms * _SUM
    return Work(streamed=_tokens(case, case.itemsize + _SUM + written))


def add_product(case: Case) -> Work:
    """``out += z^T rows``, out float32 ``[n_latents, d_model]``."""
    streamed = _latents(case) + _tokens(case, case.itemsize) + 2 * _weights(case, _SUM)
    return Work(flops=_product(case), streamed=streamed)


def masked_gradient(case: Case) -> Work:
    """``[z != 0] * (grad W_dec^T + ...)``: reads z, writes as much."""
    e = case.itemsize
    return Work(flops=_product(case), streamed=_tokens(case, e) + _weights(case, e) + 2 * _latents(case))


def encoder_gradients(case: Case) -> Work:
    """The gradients of W_enc, scale and shift by groups, in one product."""
    return add_product(case) + Work(streamed=_weights(case, case.itemsize))


def modulation_gradients(case: Case) -> Work:
    """The float32 gradient of x_mod, and x, summed by group."""
    return Work(streamed=_tokens(case, _SUM + case.itemsize))


def gather(case: Case) -> Work:
    """``z W`` of a compact code: the decoder, or the gradient of x_mod."""
    streamed = _code(case, case.itemsize + _INDEX) + _tokens(case, _SUM)
    rows = _code(case, case.shape.d_model * case.itemsize)
    return Work(streamed=streamed, gathered=rows, table=_weights(case, case.itemsize))


def transpose(case: Case) -> Work:
    """The places of a compact code ordered by latent: reads indices, writes a place for each."""
    return Work(streamed=2 * _code(case, _INDEX))


def backward_latents(case: Case) -> Work:
    """All gradients of a compact code: for each place, a row of the decoder's gradient and one of x_mod."""
    streamed = _weights(case, case.itemsize + 2 * 2 * _SUM) + _code(case, case.itemsize + _INDEX + _SUM)
    rows = 2 * _code(case, case.shape.d_model * case.itemsize)
    return Work(streamed=streamed, gathered=rows, table=2 * _tokens(case, case.itemsize))


def misfit(case: Case) -> Work:
    """The auxiliary term's error: the float32 reconstruction and residual, to a gradient."""
    return Work(streamed=_tokens(case, 2 * _SUM + case.itemsize))


BY_GROUP, BY_TWO_PRODUCTS = "encoder_gradients, by group", "encoder_gradients, by two products"

# By the names of the primitives. BY_TWO_PRODUCTS and "aux" are made of others: see `parts`.
KERNELS: dict[str, Callable[[Case], Work]] = {
    "modulate": modulate,
    "pre_activations": pre_activations,
    "keep_top_": keep_top,
    "select": select,
    "code_sums": code_sums,
    "decode_dense": decode_dense,
    "reconstruction_loss": reconstruction_loss,
    "add_product_": add_product,
    "masked_gradient": masked_gradient,
    BY_GROUP: encoder_gradients,
    "modulation_gradients": modulation_gradients,
    "gather": gather,
    "transpose": transpose,
    "backward_latents": backward_latents,
    "misfit": misfit,
}

_TWO_PRODUCTS = ("add_product_", "decode_dense", "modulation_gradients")
_BACKWARD = {
    "dense": ("add_product_", "masked_gradient"),
    "sparse": ("transpose", "backward_latents", "gather", "modulation_gradients"),
}


def parts(name: str, case: Case) -> list[Work]:
    """The works of a kernel, or of what ``name`` is made of, one after another."""
    if name == BY_TWO_PRODUCTS:
        return [KERNELS[part](case) for part in _TWO_PRODUCTS]
    if name == "aux":
        few = case.auxiliary
        return [KERNELS[part](few) for part in _auxiliary_kernels(case.regime)]
    return [KERNELS[name](case)]


def _auxiliary_kernels(regime: str) -> list[str]:
    forward = ["keep_top_", "decode_dense"] if regime == "dense" else ["select", "gather"]
    last = [BY_GROUP] if regime == "dense" else []
    return ["pre_activations", *forward, "misfit", *_BACKWARD[regime], *last]


def step_kernels(case: Case, encoder_gradients: str = BY_GROUP) -> list[str]:
    """The kernels of a step in their order; the dense regime's encoder gradients come by groups or by two products."""
    forward = ["keep_top_", "decode_dense"] if case.regime == "dense" else ["select", "gather"]
    sums, aux = (["code_sums"], ["aux"]) if case.all_terms else ([], [])
    last = [encoder_gradients] if case.regime == "dense" else []
    steps = ["modulate", "pre_activations", forward[0], *sums, forward[1], "reconstruction_loss"]
    return [*steps, *_BACKWARD[case.regime], *last, *aux]

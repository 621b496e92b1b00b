"""Chooses the backend and the regime for a problem, and says why other backends cannot serve.

A backend is a module (or any object) that has

* ``unavailable() -> str | None``: why it cannot run on this machine at all, or None;
* ``refuses(device, dtype, n_latents, k) -> str | None``: why it cannot serve this problem, or None;
* optionally ``only_by_name() -> str | None``: why "auto" passes it over although it can run, or None;
* optionally ``dense_above(device) -> float``: the density above which its dense regime wins;
* optionally ``single_launch(device, dtype, n_tokens, n_latents, k) -> bool``: whether its ``encode`` is faster than
  separate product and selection;
* any of the primitives named in `Primitives`, with the contracts of `tide_kernels.reference`, which supplies those
  that are missing. A backend whose ``transpose`` returns its own layout, with ``offsets`` as in
  `tide_kernels.reference.Transposed`, has to bring ``scatter`` too.

To add one, add a line to ``_SOURCES`` or call `register_backend`. Backends are imported on first use, never by
``import tide_kernels``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tide_kernels import reference

REGIMES = ("auto", "sparse", "dense")
PATHS = ("auto", "split", "single")

# In the order in which "auto" tries them; the reference serves everything, so it is last.
_SOURCES: dict[str, Any] = {
    "triton": "tide_kernels.triton",
    "native": "tide_kernels.native",
    "reference": "tide_kernels.reference",
}


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot serve. The message says why in one line."""


@dataclass(frozen=True)
class Primitives:
    """The primitives of one backend; contracts in `tide_kernels.reference`."""

    zeros: Callable[[Sequence[int], torch.dtype, torch.device], Tensor]
    modulate: Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, bool, torch.dtype], Tensor]
    pre_activations: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    reconstruction_loss: Callable[..., reference.Reconstruction]
    # The sparse regime: compact codes.
    select: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    gather: Callable[[Tensor, Tensor, Tensor], Tensor]
    sampled: Callable[[Tensor, Tensor, Tensor], Tensor]
    transpose: Callable[[Tensor, int], Any]
    scatter: Callable[[Tensor, Any, Tensor, Tensor], None]
    # The dense regime: masked chunks.
    keep_top_: Callable[[Tensor, int], None]
    decode_dense: Callable[[Tensor, Tensor], Tensor]
    code_sums: Callable[[Tensor, bool, float], tuple[Tensor, Tensor]]
    masked_gradient: Callable[..., Tensor]
    add_product_: Callable[[Tensor, Tensor, Tensor], None]
    # Threshold activations; contracts in `tide_kernels.thresholds`.
    select_above: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, int], tuple[Tensor, Tensor, Tensor]]
    keep_above: Callable[[Tensor, Tensor, Tensor | None, Tensor | None, Tensor], Tensor]
    key_histogram_: Callable[[Tensor, Tensor, int, Tensor | None, Tensor | None], None]
    count_equal: Callable[[Tensor, Tensor], Tensor]
    near_gradient: Callable[..., Tensor]
    # Fusions of the above. None: `tide_kernels.codes` composes them from the backend's own primitives.
    encode: Callable[..., tuple[Tensor, Tensor]] | None = None
    # `select` of `pre_activations(x_mod, W_enc, b_enc)`, which need not exist: the arguments of both. The values are
    # float32 pre-activations up to the order of their sums.
    select_product: Callable[[Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]] | None = None
    # `select_above` of `pre_activations(x_mod, W_enc, b_enc)`, which need not exist: x_mod, W_enc, b_enc, threshold,
    # group and capacity. The values are as those of `select_product`.
    code_above: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None
    # `key_histogram_` of a first part (pre, counts, shift, wanted), of which only what decides the wanted-th largest
    # has to be right: its own count and the sum of those above it; and all, if there are fewer.
    rank_histogram_: Callable[[Tensor, Tensor, int, int], None] | None = None
    # As `transpose`, for a code of `select`, which holds no latent twice in a row. None: `transpose` serves as well.
    transpose_selected: Callable[[Tensor, int], Any] | None = None
    # `tide_kernels.losses.pair_differences` of float32 values, whatever the number of latents.
    pair_differences: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    # As `tide_kernels.codes.SparseCode` composes it. A place with index >= 0 and value 0 passes no gradient to W_enc
    # and b_enc; its own is returned.
    backward_latents: Callable[..., Tensor] | None = None
    # The sums of a sparse code for its thresholds' gradient (grad_values, u, indices, transposed, threshold, group,
    # bandwidth, sums, near): at places in use where |u - threshold| < bandwidth / 2, adds grad_values to
    # ``sums [rows, n_latents]`` and 1 to ``near [rows, n_latents]`` int64.
    add_near_places: Callable[..., None] | None = None
    encoder_gradients: Callable[..., None] | None = None
    # Whether the former beats products for the same tokens: grad_pre, x, scale, shift, group. None: always.
    encoder_gradients_pay: Callable[..., bool] | None = None
    # ``out += gather(values, indices, W)``: out and the arguments of `gather`.
    add_gather_: Callable[[Tensor, Tensor, Tensor, Tensor], None] | None = None
    # `soft_count` and `code_slopes` of `tide_kernels.losses`, for compact values of any float dtype.
    soft_count: Callable[[Tensor, int, float], Tensor] | None = None
    code_slopes: Callable[..., Tensor] | None = None
    # `tide_kernels.losses.misfit`.
    misfit: Callable[[Tensor, Tensor, float, torch.dtype | None], tuple[Tensor, Tensor | None]] | None = None
    # The sums of `tide_kernels.modulation.add_modulation_gradients`, with u for x: grad, u (None without grad_scale),
    # group, grad_scale, grad_shift.
    modulation_gradients: Callable[..., None] | None = None
    keep_top_with_sums_: Callable[[Tensor, int, bool, float], tuple[Tensor, Tensor]] | None = None
    # Whether `backward_latents` also takes W_enc and what `tide_kernels.codes.Walk` holds.
    walks: bool | None = None
    # The counterpart of `zeros` for gradients that a step starts. None: they are made by `zeros`.
    empty: Callable[[Sequence[int], torch.dtype, torch.device], Tensor] | None = None

    def code(self, x_mod: Tensor, W_enc: Tensor, b_enc: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Values and indices of the selected pre-activations."""
        if self.select_product is not None:
            return self.select_product(x_mod, W_enc, b_enc, k)
        return self.select(self.pre_activations(x_mod, W_enc, b_enc), k)

    def above(
        self,
        x_mod: Tensor,
        W_enc: Tensor,
        b_enc: Tensor | None,
        threshold: Tensor,
        group: Tensor | None,
        capacity: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, indices and counts of the pre-activations above their thresholds."""
        if self.code_above is not None:
            return self.code_above(x_mod, W_enc, b_enc, threshold, group, capacity)
        return self.select_above(self.pre_activations(x_mod, W_enc, b_enc), threshold, group, None, capacity)

    @classmethod
    def of(cls, backend: Any) -> Primitives:
        """The primitives of ``backend``, completed by the reference's."""
        names = cls.__dataclass_fields__
        found: dict[str, Any] = {n: getattr(backend, n, getattr(reference, n, None)) for n in names}
        return cls(**found)


@dataclass(frozen=True)
class Choice:
    """The backend and the regime that serve a problem."""

    backend: str
    regime: str  # "sparse" or "dense"
    ops: Primitives
    single_launch: bool = False  # whether path="auto" encodes in one launch
    refused: dict[str, str] = field(default_factory=dict)  # backends that "auto" passed over, and why


def register_backend(name: str, source: Any, *, first: bool = True) -> None:
    """Makes ``source`` (an object, or the dotted name of a module) known as the backend ``name``.

    "auto" tries it before all others if ``first``, else right before the reference.
    """
    if name == "auto" or name in _SOURCES:
        raise ValueError(f"the backend name {name!r} is taken: register another name")
    entries = list(_SOURCES.items())
    entries.insert(0 if first else len(entries) - 1, (name, source))
    _SOURCES.clear()
    _SOURCES.update(entries)


def _load(name: str) -> tuple[Any, str | None]:
    """The backend, or None and the reason there is none."""
    source = _SOURCES[name]
    backend, reason = _imported(source) if isinstance(source, str) else (source, None)
    return backend, reason or backend.unavailable()


@cache  # repeating a failing import at every call would be slow
def _imported(source: str) -> tuple[Any, str | None]:
    try:
        return importlib.import_module(source), None
    except ModuleNotFoundError as error:
        if error.name == source:
            return None, f"this installation has no {source}"
        return None, f"{source} needs the package {error.name}, which is not installed"
    except (ImportError, OSError) as error:
        return None, f"{source} cannot be imported: {' '.join(str(error).split())}"


def backend_names() -> list[str]:
    """What ``backend`` can be."""
    return ["auto", *_SOURCES]


def backend_status() -> dict[str, str | None]:
    """Each backend's name, and why it cannot run on this machine; None where it can."""
    return {name: _load(name)[1] for name in _SOURCES}


def choose(
    backend: str,
    regime: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    n_latents: int,
    k: int,
    n_tokens: int = 0,
) -> Choice:
    """The backend and the regime for a problem of this shape, whatever its data.

    Raises:
        ValueError: the name of ``backend`` or ``regime`` is unknown.
        BackendError: ``backend`` was asked for by name and cannot serve.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime {regime!r} is unknown: use one of {', '.join(REGIMES)}")
    if backend not in backend_names():
        raise ValueError(f"backend {backend!r} is unknown: use one of {', '.join(backend_names())}")
    refused: dict[str, str] = {}
    for name in _SOURCES if backend == "auto" else (backend,):
        module, reason = _load(name)
        reason = reason or module.refuses(device, dtype, n_latents, k)
        if reason is None and backend == "auto" and hasattr(module, "only_by_name"):
            reason = module.only_by_name()
        if reason is None:
            regime = _regime(module, regime, device, k / n_latents)
            prefers = getattr(module, "single_launch", lambda *_: False)
            single = prefers(device, dtype, n_tokens, n_latents, k)
            return Choice(name, regime, Primitives.of(module), single, refused)
        refused[name] = reason
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in refused.items())
    raise BackendError(f"no backend can serve {backend!r}: {reasons}; backend='auto' takes one that can")


def _regime(module: Any, regime: str, device: torch.device, density: float) -> str:
    if regime != "auto":
        return regime
    dense_above = getattr(module, "dense_above", reference.dense_above)
    return "dense" if density > dense_above(device) else "sparse"

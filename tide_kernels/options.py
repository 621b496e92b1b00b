"""The training loss as one value: its options, and how a whole call passes through the library op.

An op of ``torch.library`` takes only tensors, numbers and strings. `LossArguments.flat` spells out a call in the order
of `LOSS_SCHEMA`, and `LossArguments.restored` is its inverse.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from tide_kernels.losses import LossWeights

# Elements of a chunk's [tokens, n_latents] tensor. CPU: 16 MB of float32; a step gains nothing above that.
# Elsewhere: thousands of tokens, below which the matrix products of a large GPU lose efficiency.
_CHUNK_ELEMENTS_CPU = 2**22
_CHUNK_ELEMENTS = 2**29
# Tokens of a chunk without such a tensor: each chunk reads the weights and their gradients again, while a part of its
# tokens stays in the second-level cache.
_COMPACT_TOKENS_CPU = 2**10
#: What the training loss can train.
ACTIVATIONS = ("topk", "batch_topk", "jumprelu")
_TILE = 256  # tokens: a multiple of the height of every kernel's tile


def default_chunk(n_tokens: int, n_latents: int, device: torch.device, compact: bool = False) -> int:
    """Tokens per chunk where the caller does not say.

    On a GPU chunks are equal, rounded up to whole tiles: a short last one would leave multiprocessors idle. On a CPU
    all but the last are full: its caches set the size, and other sizes would change sums in their last bits.
    """
    if device.type == "cpu":
        return max(_COMPACT_TOKENS_CPU if compact else 2, _CHUNK_ELEMENTS_CPU // n_latents)
    largest = _CHUNK_ELEMENTS // n_latents
    if largest < _TILE:
        return max(2, largest)
    chunks = max(1, -(-n_tokens // (largest - largest % _TILE)))
    equal = -(-n_tokens // chunks)
    return max(_TILE, equal + -equal % _TILE)


def default_capacity(k: int) -> int:
    """Places for the code of a token where k are in use on average."""
    return 4 * k


class LossOptions(NamedTuple):
    """The arguments of `tide_kernels.tide_loss` that are not tensors, with the same names, meanings and defaults.

    Attributes:
        k, k_aux, layer_norm, paired, weights, s_target, delta, soft_eps, chunk, backend, regime, dead_bucket,
            activation, bandwidth, capacity, prefixes: those of `tide_kernels.tide_loss`.
    """

    k: int
    k_aux: int = 0
    layer_norm: bool = False
    paired: bool = False
    weights: LossWeights = LossWeights()
    s_target: float | None = None
    delta: float = 0.01
    soft_eps: float = 0.1
    chunk: int | None = None
    backend: str = "auto"
    regime: str = "auto"
    dead_bucket: int | None = None
    activation: str = "topk"
    bandwidth: float = 0.3
    capacity: int | None = None
    prefixes: tuple[int, ...] = ()

    def places(self, n_latents: int) -> int:
        """``capacity``, or its default for this many latents: places of a token's code."""
        return min(n_latents, default_capacity(self.k) if self.capacity is None else self.capacity)

    def sparsity_target(self, n_latents: int) -> float:
        """``s_target``, or its default for this many latents."""
        return 0.8 * self.k / n_latents if self.s_target is None else self.s_target

    def tokens_per_chunk(self, n_tokens: int, n_latents: int, device: torch.device, compact: bool = False) -> int:
        """``chunk``, or its default, rounded up to whole pairs if ``paired``."""
        chunk = default_chunk(n_tokens, n_latents, device, compact) if self.chunk is None else self.chunk
        return chunk + chunk % 2 if self.paired else chunk


class Parameters(NamedTuple):
    """The parameters of the autoencoder. Gradients go by these names."""

    W_enc: Tensor  # [n_latents, d_model]
    b_enc: Tensor | None  # [n_latents]
    W_dec: Tensor  # [n_latents, d_model]
    b_dec: Tensor | None  # [d_model]
    scale: Tensor | None  # [groups, d_model]
    shift: Tensor | None  # [groups, d_model]
    threshold: Tensor | None = None  # [], [n_latents] or [groups, n_latents]


class LossArguments(NamedTuple):
    """All arguments of one call of the training loss, checked."""

    x: Tensor  # [n_tokens, d_model]
    parameters: Parameters
    group: Tensor | None  # [n_tokens] int64
    dead: Tensor | None  # [n_latents] bool
    dtype: torch.dtype  # of the operands of matrix products
    options: LossOptions
    target: Tensor | None = None  # [n_tokens, d_model]: what is reconstructed, if not x

    def flat(self) -> tuple[Any, ...]:
        """The call in the order of `LOSS_SCHEMA`."""
        options = (list(value) if isinstance(value, tuple) else value for value in self.options)
        return (self.x, *self.parameters, self.group, self.dead, self.dtype, *options, self.target)

    @classmethod
    def restored(cls, x: Tensor, *flat: Any) -> LossArguments:
        """The call that `flat` spelled out."""
        n = len(Parameters._fields)
        group, dead, dtype, *rest, target = flat[n:]
        options = LossOptions(*rest)
        options = options._replace(weights=LossWeights(*options.weights), prefixes=tuple(options.prefixes))
        return cls(x, Parameters(*flat[:n]), group, dead, dtype, options, target)


_SCHEMA_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    torch.dtype: "ScalarType",
    int: "SymInt",
    int | None: "SymInt?",
    float: "float",
    float | None: "float?",
    bool: "bool",
    str: "str",
    LossWeights: "float[]",
    tuple[int, ...]: "int[]",
}


def _schema(kind: type) -> str:
    """The fields of a tuple, and those of tuples inside it, as arguments of an op."""
    fields = get_type_hints(kind).items()
    return ", ".join(f"{_SCHEMA_TYPES[t]} {name}" if t in _SCHEMA_TYPES else _schema(t) for name, t in fields)


LOSS_SCHEMA = _schema(LossArguments)

"""The code of one chunk of tokens inside the fused step, in two regimes behind one interface.

`SparseCode` holds ``values`` and ``indices`` and multiplies by gathers. `DenseCode` holds the chunk's
``z [n_tokens, n_latents]``, zero where nothing is selected, and leaves the products to dense matrix kernels:
twenty times the arithmetic at 5 % density, which a GPU more than makes up for by its rate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from tide_kernels.dispatch import Choice, Primitives
from tide_kernels.losses import code_slopes, pair_differences, soft_count
from tide_kernels.modulation import add_modulation_gradients
from tide_kernels.reference import accumulator

MODULATION = ("scale", "shift")
ENCODER = ("W_enc", "b_enc", *MODULATION, "threshold")
#: The gradients that a walk over a sparse code computes.
WALKED = ("W_enc", "b_enc", "W_dec")


class Tokens(NamedTuple):
    """A chunk of the batch, all that its code was computed from, and what it is to reconstruct."""

    x: Tensor
    x_mod: Tensor
    scale: Tensor | None
    shift: Tensor | None
    group: Tensor | None
    layer_norm: bool
    target: Tensor


class Slopes(NamedTuple):
    """The part of the code's gradient that does not come through the decoder."""

    pair: float = 0.0  # times the difference from the pair's other row
    soft: Tensor | None = None  # times the derivative of the soft count, a scalar
    soft_eps: float = 1.0


class Walk(NamedTuple):
    """What the walk over a code does along the way: arguments of `tide_kernels.tide_loss`."""

    start: float | None
    squares: Tensor | None


#: Hears that the gradient of this name, and those before it in `tide_kernels.ranks.LARGE`, are complete.
Complete = Callable[[str], None]


class Code(Protocol):
    def decode(self, W: Tensor) -> Tensor:
        """``z W``, in the accumulation dtype."""

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        """See `tide_kernels.reference.code_sums`."""

    def count(self, fired: Tensor) -> None:
        """Adds to ``fired`` the number of tokens on which each latent is active."""

    def part(self, low: int, high: int) -> Code:
        """The code of the latents from ``low`` up to ``high`` alone, which are numbered from 0. It serves for `decode`
        and `backward`, with the rows of these latents alone."""

    def backward(
        self,
        grad: Tensor,
        tokens: Tokens,
        W_enc: Tensor,
        W_dec: Tensor,
        slopes: Slopes,
        gradients: dict[str, Tensor],
        fired: Tensor | None,
        walk: Walk | None = None,
        grad_x_mod: Tensor | None = None,
        complete: Complete | None = None,
    ) -> Tensor | None:
        """Adds to ``gradients`` those of W_dec, W_enc and b_enc that it has keys for, from ``grad``, the gradient of
        the decoder's output; also does `count` if ``fired`` is given. Afterwards the code is used up.
        The codes of `tide_kernels.jumprelu` add up what that of their thresholds needs. ``walk`` is for sparse codes
        of a backend that `walks`, with gradients of the encoder among those wanted; its start replaces what those of
        W_dec, W_enc and b_enc hold. ``complete`` may hear of W_dec and of W_enc once this code adds nothing more to
        their gradients; whoever sums them does not rely on it.

        Returns the gradient of x_mod in the accumulation dtype, added to ``grad_x_mod`` if that is given, from which
        `add_modulation_gradients` makes those of scale and shift: codes of the same tokens share it. Where neither is
        wanted, or a backend has added them itself, it returns ``grad_x_mod``."""


def encode(choice: Choice, pre: Tensor, k: int, sums: tuple[bool, float] | None = None) -> Code:
    """The code of pre-activations. The dense regime overwrites ``pre``. ``sums`` are the arguments with which the
    code's `sums` will be asked for, if they will be: a backend may compute them along with the selection."""
    ops = choice.ops
    if choice.regime == "sparse":
        return SparseCode(ops, *ops.select(pre, k), pre.shape[1])
    if sums is not None and ops.keep_top_with_sums_ is not None:
        return DenseCode(ops, pre, ops.keep_top_with_sums_(pre, k, *sums))
    ops.keep_top_(pre, k)
    return DenseCode(ops, pre)


class Compact(NamedTuple):
    """The form in which a code is kept until its chunk is processed."""

    values: Tensor
    indices: Tensor

    def unpack(self, choice: Choice, n_latents: int) -> Code:
        if choice.regime == "sparse":
            return SparseCode(choice.ops, self.values, self.indices, n_latents)
        return DenseCode(choice.ops, self._written_out(n_latents))

    def _written_out(self, n_latents: int) -> Tensor:
        """z. Unused places write to a spare element behind it: the others are distinct, so that nothing is added."""
        n_tokens = len(self.values)
        flat = self.values.new_zeros(n_tokens * n_latents + 1)
        first = torch.arange(0, n_tokens * n_latents, n_latents, device=flat.device).unsqueeze(1)
        place = torch.where(self.indices < 0, n_tokens * n_latents, first + self.indices)
        flat.scatter_(0, place.flatten(), self.values.flatten())
        return flat[:-1].view(n_tokens, n_latents)


class SparseCode:
    def __init__(self, ops: Primitives, values: Tensor, indices: Tensor, n_latents: int) -> None:
        self.ops, self.values, self.indices, self.n_latents = ops, values, indices, n_latents
        self.sum_dtype = accumulator(values.dtype)

    @cached_property
    def transposed(self) -> Any:
        return (self.ops.transpose_selected or self.ops.transpose)(self.indices, self.n_latents)

    @cached_property
    def _pairs(self) -> tuple[Tensor, Tensor]:
        values = self.values.to(self.sum_dtype)
        if self.ops.pair_differences is not None:
            return self.ops.pair_differences(values, self.indices)
        return pair_differences(values, self.indices, self.n_latents)

    def decode(self, W: Tensor) -> Tensor:
        return self.ops.gather(self.values, self.indices, W)

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        values = self.values.to(self.sum_dtype)
        temporal = self._pairs[0] if paired else values.new_zeros(())
        return temporal, (self.ops.soft_count or soft_count)(values, self.n_latents, soft_eps)

    def count(self, fired: Tensor) -> None:
        fired += self.transposed.offsets.diff()

    def part(self, low: int, high: int) -> Code:
        return SparseCode(self.ops, *places_of(self.values, self.indices, low, high), high - low)

    def backward(
        self,
        grad: Tensor,
        tokens: Tokens,
        W_enc: Tensor,
        W_dec: Tensor,
        slopes: Slopes,
        gradients: dict[str, Tensor],
        fired: Tensor | None,
        walk: Walk | None = None,
        grad_x_mod: Tensor | None = None,
        complete: Complete | None = None,
    ) -> Tensor | None:
        if fired is not None:
            self.count(fired)
        if gradients.keys().isdisjoint(ENCODER):
            if "W_dec" in gradients:
                self.ops.scatter(self.values, self.transposed, grad, gradients["W_dec"])
            return grad_x_mod
        weights = (gradients.get(name) for name in ("W_dec", "W_enc", "b_enc"))
        backward_latents = self.ops.backward_latents or self._backward_latents
        more = {} if walk is None else {**walk._asdict(), "W_enc": W_enc}
        grad_values = backward_latents(
            self.values, self.indices, self.transposed, grad, tokens.x_mod, W_dec, self._extra(slopes), *weights, **more
        )
        if complete is not None:
            complete("W_enc")
        grad_values = self.passed_on(grad_values)
        if gradients.keys().isdisjoint(MODULATION):
            return grad_x_mod
        code = (grad_values.to(W_enc.dtype), self.indices, W_enc)
        if grad_x_mod is None:
            return self.ops.gather(*code)
        if self.ops.add_gather_ is None:
            return grad_x_mod.add_(self.ops.gather(*code))
        self.ops.add_gather_(grad_x_mod, *code)
        return grad_x_mod

    def passed_on(self, grad_values: Tensor) -> Tensor:
        """The part of the values' gradient that the pre-activations get: all of it, unless a threshold takes some."""
        return grad_values

    def _extra(self, slopes: Slopes) -> Tensor | None:
        if not slopes.pair and slopes.soft is None:
            return None
        differences = self._pairs[1] if slopes.pair else None
        own = self.ops.code_slopes or code_slopes
        return own(self.values.to(self.sum_dtype), differences, *slopes, self.n_latents)

    def _backward_latents(
        self,
        values: Tensor,
        indices: Tensor,
        transposed: Any,
        grad: Tensor,
        x_mod: Tensor,
        W_dec: Tensor,
        extra: Tensor | None,
        grad_W_dec: Tensor | None,
        grad_W_enc: Tensor | None,
        grad_b_enc: Tensor | None,
    ) -> Tensor:
        """What a backend may fuse into one walk over the latents.

        For each place, with token i, latent l and value v, ``dv = <grad_i, W_dec_l> + extra``;
        ``grad_W_dec_l += v grad_i``, ``grad_W_enc_l += dv x_mod_i``, ``grad_b_enc_l += dv``, of which those of the
        encoder leave out places with v = 0. Returns dv, [n_tokens, k] in the accumulation dtype, 0 at unused places.
        """
        if grad_W_dec is not None:
            self.ops.scatter(values, transposed, grad, grad_W_dec)
        grad_values = self.ops.sampled(grad, W_dec, indices)
        if extra is not None:
            grad_values += extra
        grad_pre = grad_values.masked_fill(values == 0, 0)
        if grad_W_enc is not None:
            self.ops.scatter(grad_pre, transposed, x_mod, grad_W_enc)
        if grad_b_enc is not None:
            ones = grad_b_enc.new_ones(len(values), 1)
            self.ops.scatter(grad_pre, transposed, ones, grad_b_enc.view(-1, 1))
        return grad_values


def places_of(values: Tensor, indices: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """The places of a code that hold the latents from ``low`` up to ``high``, which are numbered from 0.

    The rows of ``indices`` ascend, unused places last, and so do those of the result. It has places for ``high - low``
    latents at most; on a CPU, where it costs nothing to know the longest row, for that row and no more.
    """
    before = ((indices >= 0) & (indices < low)).sum(1, keepdim=True)
    count = ((indices >= low) & (indices < high)).sum(1, keepdim=True)
    width = min(indices.shape[1], high - low)
    if indices.device.type == "cpu":
        width = max(1, int(count.max()))
    column = torch.arange(width, device=indices.device)
    place, unused = (before + column).clamp_(max=indices.shape[1] - 1), column >= count
    values, indices = values.gather(1, place), indices.gather(1, place) - low
    return values.masked_fill_(unused, 0), indices.masked_fill_(unused, -1)


class DenseCode:
    def __init__(self, ops: Primitives, z: Tensor, sums: tuple[Tensor, Tensor] | None = None) -> None:
        self.ops, self.z, self.known_sums = ops, z, sums

    def decode(self, W: Tensor) -> Tensor:
        return self.ops.decode_dense(self.z, W)

    def sums(self, paired: bool, soft_eps: float) -> tuple[Tensor, Tensor]:
        return self.known_sums or self.ops.code_sums(self.z, paired, soft_eps)

    def count(self, fired: Tensor) -> None:
        fired += (self.z != 0).sum(0, dtype=torch.int32)  # summed as int64, the chunk would be the largest tensor

    def part(self, low: int, high: int) -> Code:
        return DenseCode(self.ops, self.z[:, low:high])

    def backward(
        self,
        grad: Tensor,
        tokens: Tokens,
        W_enc: Tensor,
        W_dec: Tensor,
        slopes: Slopes,
        gradients: dict[str, Tensor],
        fired: Tensor | None,
        walk: Walk | None = None,
        grad_x_mod: Tensor | None = None,
        complete: Complete | None = None,
    ) -> Tensor | None:
        if "W_dec" in gradients:
            self.ops.add_product_(gradients["W_dec"], self.z, grad)
        if complete is not None:
            complete("W_dec")
        if gradients.keys().isdisjoint(ENCODER):
            if fired is not None:
                self.count(fired)
            return grad_x_mod
        b_enc = gradients.get("b_enc")
        grad_pre = self.masked_gradient(grad, W_dec, slopes, b_enc, fired)
        del self.z  # as large as its gradient, and no longer needed
        grad_W_enc, *tables = (gradients.get(name) for name in ("W_enc", *MODULATION))
        if (fused := self._fused(grad_pre, tokens)) is not None:
            x, x_mod, *modulation, _ = tokens
            fused(grad_pre, x, x_mod, *modulation, W_enc, grad_W_enc, *tables)
            return grad_x_mod
        wanted = any(table is not None for table in tables)
        return encoder_products(self.ops, grad_pre, tokens.x_mod, W_enc, grad_W_enc, wanted, grad_x_mod, complete)

    def masked_gradient(
        self, grad: Tensor, W_dec: Tensor, slopes: Slopes, grad_b_enc: Tensor | None, fired: Tensor | None
    ) -> Tensor:
        """The gradient of the pre-activations; adds its column sums and those of z != 0."""
        return self.ops.masked_gradient(grad, W_dec, self.z, *slopes, grad_b_enc, fired)

    def _fused(self, grad_pre: Tensor, tokens: Tokens) -> Callable[..., None] | None:
        """The backend's own way to the encoder's gradients, those of scale and shift included, where it pays."""
        pays = self.ops.encoder_gradients_pay
        if pays is not None and not pays(grad_pre, tokens.x, tokens.scale, tokens.shift, tokens.group):
            return None
        return self.ops.encoder_gradients


def encoder_products(
    ops: Primitives,
    grad_pre: Tensor,
    x_mod: Tensor,
    W_enc: Tensor,
    grad_W_enc: Tensor | None,
    wanted: bool,
    grad_x_mod: Tensor | None = None,
    complete: Complete | None = None,
) -> Tensor | None:
    """Adds ``grad_pre^T x_mod`` to ``grad_W_enc``. Returns ``grad_pre W_enc``, the gradient of x_mod, if it is
    ``wanted``, added to ``grad_x_mod`` if that is given."""
    if grad_W_enc is not None:
        ops.add_product_(grad_W_enc, grad_pre, x_mod)
    if complete is not None:
        complete("W_enc")
    if not wanted:
        return grad_x_mod
    if grad_x_mod is None:
        return ops.decode_dense(grad_pre, W_enc)
    ops.add_product_(grad_x_mod, grad_pre.T, W_enc)
    return grad_x_mod


def encoder_gradients(
    ops: Primitives,
    grad_pre: Tensor,
    x: Tensor,
    x_mod: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    group: Tensor | None,
    layer_norm: bool,
    W_enc: Tensor,
    grad_W_enc: Tensor | None,
    grad_scale: Tensor | None,
    grad_shift: Tensor | None,
) -> None:
    """Adds the gradients that follow from ``grad_pre``, that of the pre-activations: that of W_enc by
    `encoder_products` and, with that of x_mod, those of scale and shift. A backend's own takes the same arguments
    without ``ops``."""
    wanted = grad_scale is not None or grad_shift is not None
    grad_x_mod = encoder_products(ops, grad_pre, x_mod, W_enc, grad_W_enc, wanted)
    if grad_x_mod is not None:
        add_modulation_gradients(ops, grad_x_mod, x, group, layer_norm, grad_scale, grad_shift)

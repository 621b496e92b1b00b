"""The sparse autoencoder of normalised rows: TopK or another activation, its input modulated by a scale and a shift."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tide.errors import TideError
from tide.sae.activation import Activation, BatchTopK, Gated, JumpReLU, ReLU
from tide.sae.activation.gain import TimestepGain
from tide.sae.codes import Codes
from tide.sae.config import TIDEConfig
from tide.sae.modulation import ScaleShift
from tide.world import World
from tide_kernels import decode, encode_threshold, encode_topk, modulate
from tide_kernels.codes import Compact
from tide_kernels.dispatch import choose
from tide_kernels.reference import select
from tide_kernels.shards import largest_of_all

#: |1 + scale| is kept at least this far from zero when the modulation is undone (values of 6e-4 occur).
UNDO_FLOOR = 0.05
#: Rows of the initial weights that are drawn at a time. PyTorch draws in sixteens, so that rows in multiples of it are
#: the same however many follow.
_DRAWN = 4096


class Autoencoder(nn.Module):
    """``l = ReLU(W_enc x_mod + b_enc)``, ``z = TopK(l)``, ``x_hat = W_dec^T z + b_dec`` (eqs 1, 2).

    ``x_mod = x * (1 + scale) + shift`` (eq. 8) with the scale and shift that every method is given: where they come
    from, and the units of ``x``, are :class:`~tide.sae.TIDE`'s. Both weights are ``[n_latents, d_model]``; the encoder
    starts as the decoder's transpose. A transcoder decodes to another space than it encodes: its decoder starts at
    zero (docs/dictionaries.md). Rows are ``[N, d_model]``.

    The ranks of ``among`` hold equal parts of the latents, in order: rows of the weights. What they compute together is
    what one process computes: reconstructions and losses, and of a code each rank's own latents, numbered from its
    first.
    """

    def __init__(self, config: TIDEConfig, generator: torch.Generator, backend: str, among: World) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        self.among = among
        n_own = config.n_latents // among.count
        first = n_own * among.number
        directions = _directions(config.n_latents, config.d_model, range(first, first + n_own), generator)
        self.W_dec = nn.Parameter(directions if config.target is None else torch.zeros_like(directions))
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_own)) if config.encoder_bias else None
        self.b_dec = nn.Parameter(torch.zeros(config.d_model)) if config.decoder_bias else None
        self.activation = _activation(config, n_own, generator, among)

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def n_latents(self) -> int:
        """Of all ranks."""
        return self.config.n_latents

    def by_latent(self) -> list[nn.Parameter]:
        """The parameters that have a row for each latent."""
        own = [] if self.activation is None else self.activation.latent_parameters()
        return [self.W_enc, self.W_dec, *([] if self.b_enc is None else [self.b_enc]), *own]

    @property
    def layer_norm(self) -> bool:
        """Whether the modulation is of the rows' LayerNorm."""
        return self.config.pre_norm == "layernorm"

    def latents(self, rows: Tensor, modulation: ScaleShift, k: int | None = None) -> Codes:
        """Sparse latents of the rows; ``k`` None is the config's.

        Raises :class:`~tide.errors.TideError` if ``k`` is given and the activation is not TopK.
        """
        if self.activation is None:
            return self.select(rows, modulation, self.config.k if k is None else k)
        if k is not None:
            raise TideError(f"k cannot be set for one call of a {self.config.activation} autoencoder; leave it out")
        if modulation.threshold is not None and not isinstance(self.activation, Gated):
            return self.select_above(rows, modulation)
        z = self.activation(self.pre_activations(rows, modulation), self.b_enc, modulation.threshold, modulation.group)
        if len(z) == 0:
            return Codes(z[:, :1], z[:, :1].int())
        _, indices = select(z.detach(), max(1, int((z != 0).sum(1).max())))
        return Codes(z.gather(1, indices.clamp(min=0).long()).masked_fill(indices < 0, 0), indices)

    def select_above(self, rows: Tensor, modulation: ScaleShift) -> Codes:
        """The codes of the rows by thresholds, by the kernels: with places for the longest row, and no more."""
        longest, width = None, 0
        while longest is None or longest > width:  # a second time where a row is longer than was expected
            values, indices, count = self._above(rows, modulation, longest)
            longest, width = max(1, int(count.max())) if len(count) else 1, values.shape[1]
        return Codes(values[:, :longest], indices[:, :longest])

    def _above(self, rows: Tensor, modulation: ScaleShift, capacity: int | None) -> tuple[Tensor, Tensor, Tensor]:
        dtype = rows.dtype
        assert modulation.threshold is not None
        return encode_threshold(
            rows,
            self.W_enc.to(dtype),
            None if self.b_enc is None else self.b_enc.to(dtype),
            modulation.threshold,
            **modulation.to(dtype).tables(),
            layer_norm=self.layer_norm,
            k=self.config.k,
            capacity=capacity,
            backend=self.backend,
        )

    def select(self, rows: Tensor, modulation: ScaleShift, k: int) -> Codes:
        """The TopK codes of the rows, by the kernels."""
        dtype, n_own = rows.dtype, len(self.W_enc)
        values, indices = encode_topk(
            rows,
            self.W_enc.to(dtype),
            None if self.b_enc is None else self.b_enc.to(dtype),
            min(k, n_own),
            **modulation.to(dtype).tables(),
            layer_norm=self.layer_norm,
            backend=self.backend,
        )
        if self.among.several:
            chosen = choose(self.backend, "auto", device=values.device, dtype=values.dtype, n_latents=n_own, k=k)
            values, indices = largest_of_all(chosen.ops, Compact(values, indices), k, self.among.group)
        return Codes(values, indices)

    def pre_activations(self, rows: Tensor, modulation: ScaleShift) -> Tensor:
        """``W_enc x_mod + b_enc`` ``[N, n_latents]``."""
        bias = None if self.b_enc is None else self.b_enc.to(rows.dtype)
        return F.linear(self.modulated(rows, modulation), self.W_enc.to(rows.dtype), bias)

    def modulated(self, rows: Tensor, modulation: ScaleShift) -> Tensor:
        """``x_mod``; the rows themselves without modulation."""
        scale, shift, group, _ = modulation.to(rows.dtype)
        if scale is None:
            return rows
        return modulate(rows, scale, shift, group, layer_norm=self.layer_norm, backend=self.backend)

    def reconstruct(self, codes: Codes, modulation: ScaleShift) -> Tensor:
        """The reconstruction ``[N, d_model]`` of sparse latents."""
        dtype = codes.values.dtype
        bias = None if self.b_dec is None else self.b_dec.to(dtype)
        own_bias = bias if self.among.number == 0 else None
        x_hat = decode(codes.values, codes.indices, self.W_dec.to(dtype), own_bias, backend=self.backend)
        return self._undone(self.among.summed(x_hat), modulation)

    def reconstruct_dense(self, latents: Tensor, modulation: ScaleShift, *, frozen: bool = False) -> Tensor:
        """:meth:`reconstruct` of ``latents [N, n_latents]``; ``frozen`` keeps gradients from the decoder."""
        W_dec: Tensor = self.W_dec.detach() if frozen else self.W_dec
        x_hat = latents @ W_dec.to(latents.dtype)
        if self.b_dec is not None:
            x_hat = x_hat + (self.b_dec.detach() if frozen else self.b_dec)
        return self._undone(x_hat, modulation)

    def _undone(self, x_hat: Tensor, modulation: ScaleShift) -> Tensor:
        """With ``undo`` ``(x_hat - shift) / (1 + scale)``, else ``x_hat``."""
        if not self.config.undo:
            return x_hat
        assert modulation.shift is not None
        shift, group = modulation.shift.to(x_hat.dtype), modulation.group
        return self.unscaled(x_hat - (shift if group is None else shift[group.long()]), modulation)

    def unscaled(self, x_hat: Tensor, modulation: ScaleShift) -> Tensor:
        """``x_hat / (1 + scale)``, the divisor kept :data:`UNDO_FLOOR` away from zero."""
        assert modulation.scale is not None
        factor = 1 + modulation.scale.to(x_hat.dtype)
        factor = torch.where(factor < 0, -1.0, 1.0).to(factor.dtype) * factor.abs().clamp(min=UNDO_FLOOR)
        return x_hat / (factor if modulation.group is None else factor[modulation.group.long()])


def _directions(n_latents: int, d_model: int, own: range, generator: torch.Generator) -> Tensor:
    """Rows of ``own`` of random unit directions ``[n_latents, d_model]``, of which only some more exist at a time."""
    directions = torch.empty(len(own), d_model)
    for start, stop in pairwise((*range(0, max(1, n_latents - _DRAWN), _DRAWN), n_latents)):
        drawn = torch.randn(stop - start, d_model, generator=generator)
        first, last = max(start, own.start), min(stop, own.stop)
        if first < last:
            directions[first - own.start : last - own.start] = F.normalize(drawn[first - start : last - start], dim=1)
    return directions


def _activation(config: TIDEConfig, n_own: int, generator: torch.Generator, among: World) -> Activation | None:
    """The activation's own parameters; None for TopK, which has none and is the kernels' own."""
    if config.activation == "topk":
        return None
    if config.activation in ("relu", "gated"):
        return (ReLU if config.activation == "relu" else Gated)(n_own, stored=config.match_l0)
    gain = None
    if config.timestep_thresholds and config.modulation is not None:
        gain = TimestepGain(n_own, config.modulation.d_embedding, generator, among)
    return (JumpReLU if config.activation == "jumprelu" else BatchTopK)(n_own, config.bandwidth, gain=gain)

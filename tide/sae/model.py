"""TIDE: a TopK sparse autoencoder whose input is modulated by the timestep (eqs 1, 2 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tide.errors import TideError
from tide.sae.activation import ACTIVATIONS, Activation, JumpReLU
from tide.sae.composed import composed_loss
from tide.sae.modulation import Modulation, ModulationConfig
from tide.sae.normalisation import Moments, measured
from tide_kernels import LossTerms, LossWeights, decode, encode_topk, modulate, tide_loss
from tide_kernels.reference import select


@dataclass(frozen=True)
class TIDEConfig:
    """Everything needed to rebuild a :class:`TIDE`, and where it was trained.

    ``modulation=None`` is the plain TopK SAE. ``pre_norm`` is the input of the modulation: the activation as
    collected (eq. 8 literally) or its LayerNorm, as inside the model. ``undo`` also inverts the modulation at the
    output: ``(x_hat - shift) / (1 + scale)``. ``activation`` is "topk" or one of :mod:`tide.sae.activation`: of those
    BatchTopK and JumpReLU aim at ``k`` active latents on average, ReLU and Gated take no notice of it.
    ``bandwidth`` is that of JumpReLU's straight-through estimators. ``centre`` subtracts each channel's mean before
    all else; a config without the field, as older ones are, is of a model that does not.
    """

    d_model: int
    n_latents: int
    k: int
    modulation: ModulationConfig | None = None
    pre_norm: Literal["none", "layernorm"] = "none"
    undo: bool = False
    activation: Literal["topk", "batch_topk", "relu", "jumprelu", "gated"] = "topk"
    bandwidth: float = 0.3
    encoder_bias: bool = True
    decoder_bias: bool = True
    centre: bool = False
    family: str | None = None
    pipeline: str | None = None
    block: int | None = None
    tensor: str = "output"

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n_latents:
            raise TideError(f"k = {self.k} must lie between 1 and n_latents = {self.n_latents}; lower k or raise n")
        if self.d_model < 1:
            raise TideError(f"d_model = {self.d_model} must be positive")
        if self.pre_norm not in ("none", "layernorm"):
            raise TideError(f"pre_norm = {self.pre_norm!r} is unknown; use 'none' or 'layernorm'")
        if self.activation not in ("topk", *ACTIVATIONS):
            known = ", ".join(("topk", *ACTIVATIONS))
            raise TideError(f"activation = {self.activation!r} is unknown; use one of {known}")
        if not self.bandwidth > 0:
            raise TideError(f"bandwidth = {self.bandwidth} must be positive")
        if self.modulation is None and (self.undo or self.pre_norm != "none"):
            raise TideError("undo and pre_norm belong to the modulation; give modulation=... or leave them off")
        if self.modulation is not None and self.modulation.d_model != self.d_model:
            raise TideError(
                f"the modulation has width {self.modulation.d_model} and the model {self.d_model}; they must be equal"
            )


class Codes(NamedTuple):
    """Sparse latents: ``values [N, k]``, ``indices [N, k]`` int32 ascending, unused places 0 and -1.

    Where the activation is not TopK, k is the largest number of active latents of a row.
    """

    values: Tensor
    indices: Tensor

    def dense(self, n_latents: int) -> Tensor:
        """The latents as ``[N, n_latents]``, zeros where nothing fired."""
        out = self.values.new_zeros(len(self.values), n_latents)
        # Unused places hold the value 0, so that adding them to latent 0 changes nothing.
        return out.scatter_add_(1, self.indices.clamp(min=0).long(), self.values)


class Place(NamedTuple):
    """Where rows stand in the diffusion: ``scale, shift [groups, d_model]`` of eq. 8 and each row's ``group [N]``."""

    scale: Tensor | None
    shift: Tensor | None
    group: Tensor | None


#: Of rows without modulation.
NOWHERE = Place(None, None, None)

#: |1 + scale| is kept at least this far from zero when the modulation is undone (values of 6e-4 occur).
UNDO_FLOOR = 0.05


class TIDE(nn.Module):
    """``l = ReLU(W_enc x_mod + b_enc)``, ``z = TopK(l)``, ``x_hat = W_dec^T z + b_dec`` (eqs 1, 2).

    ``x_mod = x * (1 + scale) + shift`` (eq. 8), scale and shift a function of the timestep, started from the
    diffusion model's own adaLN. Both weights are ``[n_latents, d_model]``; the encoder starts as the decoder's
    transpose. Activations come and go in the diffusion model's units: on the way in they are divided by
    ``activation_scale`` (their root mean square over tokens and channels, see :meth:`calibrate`), on the way out
    multiplied. With ``centre`` each channel's mean, ``activation_mean``, is subtracted first and added last::

        x_n = (x - activation_mean) / activation_scale        x_hat = activation_mean + activation_scale * x_n_hat

    and ``activation_scale`` is the root mean square deviation. Modulation, LayerNorm, ``undo`` and the loss are of
    x_n (docs/normalisation.md).

    Args:
        config: shapes, options and provenance.
        modulation: the adaLN copy to start from; fresh if the config asks for one and none is given.
        backend: kernel backend of ``tide_kernels``, "auto" by default.
        seed: of the initial weights.
    """

    def __init__(
        self,
        config: TIDEConfig,
        modulation: Modulation | None = None,
        *,
        backend: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(config.n_latents, config.d_model, generator=generator)
        directions = F.normalize(directions, dim=1)
        self.W_dec = nn.Parameter(directions)
        self.W_enc = nn.Parameter(directions.clone())
        self.b_enc = nn.Parameter(torch.zeros(config.n_latents)) if config.encoder_bias else None
        self.b_dec = nn.Parameter(torch.zeros(config.d_model)) if config.decoder_bias else None
        self.register_buffer("activation_scale", torch.ones(()))
        self.register_buffer("activation_mean", torch.zeros(config.d_model) if config.centre else None)
        self.activation = _activation(config)
        self.modulation: Modulation | None = None
        if modulation is not None and modulation.config != config.modulation:
            raise TideError(f"the modulation is not the config's ({config.modulation}); give both the same config")
        if config.modulation is not None:
            self.modulation = Modulation(config.modulation, generator) if modulation is None else modulation

    activation_scale: Tensor
    activation_mean: Tensor | None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TIDE:
        """What ``.to()``, ``.half()`` and the like do. ``activation_mean`` stays float32 in a model of 16 bits: rounded
        to them, a mean of hundreds would be off by more than the deviations from it."""
        before = self.activation_mean
        super()._apply(fn, recurse)
        if before is not None and self.activation_mean is not None and self.activation_mean.itemsize < before.itemsize:
            self.activation_mean = before.to(self.activation_mean.device)
        return self

    @property
    def d_model(self) -> int:
        return self.config.d_model

    @property
    def n_latents(self) -> int:
        return self.config.n_latents

    # -- modulation ---------------------------------------------------------------------------------------

    def _modulation_of(
        self, timestep: Tensor | float | None, conditioning: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if self.modulation is None:
            return None, None
        if timestep is None:
            raise TideError("this TIDE is modulated by the timestep; pass timestep=")
        steps = torch.as_tensor(timestep, dtype=torch.float32, device=self.W_enc.device).reshape(-1)
        scale, shift = self.modulation(steps, conditioning)
        return scale, shift

    def _placed(
        self, x: Tensor, timestep: Tensor | float | None, conditioning: Tensor | None, group: Tensor | None
    ) -> tuple[Tensor, Place]:
        """``x`` as ``[N, d_model]`` in normalised units, and where its rows stand."""
        rows = self._rows(x)
        return self.normalised(rows), self._place(len(rows), timestep, conditioning, group)

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_model:
            raise TideError(
                f"activations have width {x.shape[-1]} and this TIDE {self.d_model}; "
                "use one trained on this block and model"
            )
        return x.reshape(-1, self.d_model)

    def normalised(self, rows: Tensor) -> Tensor:
        """Rows ``[N, d_model]`` from activation to normalised units."""
        if self.activation_mean is None:
            return rows / self.activation_scale.to(rows.dtype)
        # In float32 at least: a mean of hundreds rounded to 16 bits would be off by more than what it leaves.
        return ((rows - self.activation_mean) / self.activation_scale).to(rows.dtype)

    def _restored(self, x_hat: Tensor) -> Tensor:
        """The inverse of :meth:`normalised`."""
        if self.activation_mean is None:
            return x_hat * self.activation_scale.to(x_hat.dtype)
        wide = torch.promote_types(x_hat.dtype, self.activation_mean.dtype)
        return (x_hat.to(wide) * self.activation_scale + self.activation_mean).to(x_hat.dtype)

    def _place(
        self, n_rows: int, timestep: Tensor | float | None, conditioning: Tensor | None, group: Tensor | None
    ) -> Place:
        scale, shift = self._modulation_of(timestep, conditioning)
        if scale is None:
            return NOWHERE
        if group is None and len(scale) > 1:
            if n_rows % len(scale):
                raise TideError(f"{n_rows} rows cannot be shared by {len(scale)} timesteps; pass group=")
            group = torch.arange(len(scale), device=scale.device, dtype=torch.int32)
            group = group.repeat_interleave(n_rows // len(scale))
        return Place(scale, shift, group)

    # -- the autoencoder ----------------------------------------------------------------------------------

    def encode(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        conditioning: Tensor | None = None,
        group: Tensor | None = None,
        k: int | None = None,
    ) -> Codes:
        """Sparse latents of activations ``x [..., d_model]``, flattened to rows.

        ``timestep`` holds one value per modulation group and ``group [N]`` names each row's; without ``group``
        the rows are shared evenly, so ``x [B, T, d_model]`` with ``timestep [B]`` needs none.
        """
        rows, place = self._placed(x, timestep, conditioning, group)
        if self.activation is None:
            return self.select(rows, place, self.config.k if k is None else k)
        if k is not None:
            raise TideError(f"k cannot be set for one call of a {self.config.activation} autoencoder; leave it out")
        z = self.activation(self.pre_activations(rows, place), self.b_enc)
        if len(z) == 0:
            return Codes(z[:, :1], z[:, :1].int())
        _, indices = select(z.detach(), max(1, int((z != 0).sum(1).max())))
        return Codes(z.gather(1, indices.clamp(min=0).long()).masked_fill(indices < 0, 0), indices)

    def select(self, rows: Tensor, place: Place, k: int) -> Codes:
        """TopK codes of rows in normalised units."""
        dtype = rows.dtype
        values, indices = encode_topk(
            rows,
            self.W_enc.to(dtype),
            None if self.b_enc is None else self.b_enc.to(dtype),
            k,
            scale=None if place.scale is None else place.scale.to(dtype),
            shift=None if place.shift is None else place.shift.to(dtype),
            group=place.group,
            layer_norm=self.config.pre_norm == "layernorm",
            backend=self.backend,
        )
        return Codes(values, indices)

    def pre_activations(self, rows: Tensor, place: Place) -> Tensor:
        """``W_enc x_mod + b_enc`` ``[N, n_latents]`` of rows in normalised units."""
        modulated = self._modulated(rows, place)
        bias = None if self.b_enc is None else self.b_enc.to(rows.dtype)
        return F.linear(modulated, self.W_enc.to(rows.dtype), bias)

    def _modulated(self, rows: Tensor, place: Place) -> Tensor:
        if place.scale is None:
            return rows
        layer_norm = self.config.pre_norm == "layernorm"
        scale, shift = place.scale.to(rows.dtype), None if place.shift is None else place.shift.to(rows.dtype)
        return modulate(rows, scale, shift, place.group, layer_norm=layer_norm, backend=self.backend)

    def decode(
        self,
        codes: Codes,
        timestep: Tensor | float | None = None,
        conditioning: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """Activations ``[N, d_model]`` of sparse latents. Timestep, conditioning and group matter only with
        ``undo``."""
        place = self._place(len(codes.values), timestep, conditioning, group) if self.config.undo else NOWHERE
        return self._restored(self.reconstruct(codes, place))

    def reconstruct(self, codes: Codes, place: Place) -> Tensor:
        """The reconstruction of sparse latents in normalised units."""
        dtype = codes.values.dtype
        bias = None if self.b_dec is None else self.b_dec.to(dtype)
        x_hat = decode(codes.values, codes.indices, self.W_dec.to(dtype), bias, backend=self.backend)
        return self._undone(x_hat, place)

    def reconstruct_dense(self, latents: Tensor, place: Place, *, frozen: bool = False) -> Tensor:
        """:meth:`reconstruct` of ``latents [N, n_latents]``; ``frozen`` keeps gradients from the decoder."""
        W_dec: Tensor = self.W_dec.detach() if frozen else self.W_dec
        x_hat = latents @ W_dec.to(latents.dtype)
        if self.b_dec is not None:
            x_hat = x_hat + (self.b_dec.detach() if frozen else self.b_dec)
        return self._undone(x_hat, place)

    def decode_dense(self, latents: Tensor) -> Tensor:
        """``latents [N, n_latents] @ W_dec`` in activation units, without bias and mean: a difference of latents
        decodes to a difference of activations."""
        if self.config.undo:
            raise TideError("decode_dense is linear and this TIDE undoes its modulation; use decode")
        return (latents @ self.W_dec.to(latents.dtype)) * self.activation_scale.to(latents.dtype)

    def _undone(self, x_hat: Tensor, place: Place) -> Tensor:
        """With ``undo`` ``(x_hat - shift) / (1 + scale)``, else ``x_hat``."""
        if not self.config.undo:
            return x_hat
        assert place.shift is not None
        shift = place.shift.to(x_hat.dtype)
        return self.unscaled(x_hat - (shift if place.group is None else shift[place.group.long()]), place)

    def unscaled(self, x_hat: Tensor, place: Place) -> Tensor:
        """``x_hat / (1 + scale)``, the divisor kept :data:`UNDO_FLOOR` away from zero."""
        assert place.scale is not None
        factor = 1 + place.scale.to(x_hat.dtype)
        factor = torch.where(factor < 0, -1.0, 1.0).to(factor.dtype) * factor.abs().clamp(min=UNDO_FLOOR)
        return x_hat / (factor if place.group is None else factor[place.group.long()])

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        conditioning: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """The reconstruction of ``x [..., d_model]``, in its shape and units."""
        codes = self.encode(x, timestep, conditioning, group)
        return self.decode(codes, timestep, conditioning, group).view_as(x)

    def loss(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        conditioning: Tensor | None = None,
        group: Tensor | None = None,
        *,
        paired: bool = False,
        k: int | None = None,
        weights: LossWeights | None = None,
        s_target: float | None = None,
        delta: float = 0.01,
        dead: Tensor | None = None,
        k_aux: int = 0,
    ) -> LossTerms:
        """The training loss (eqs 13-16) on rows in activation units; every term in normalised units.

        One fused op for TopK. With ``undo`` or another activation it is composed of the ops, which is slower and
        holds ``[N, n_latents]`` (:mod:`tide.sae.composed`).
        """
        rows, place = self._placed(x, timestep, conditioning, group)
        k = self.config.k if k is None else k
        weights = LossWeights() if weights is None else weights
        if self.config.undo or self.activation is not None:
            return composed_loss(
                self,
                rows,
                place,
                paired=paired,
                k=k,
                weights=weights,
                s_target=0.8 * k / self.n_latents if s_target is None else s_target,
                delta=delta,
                dead=dead,
                k_aux=k_aux,
            )
        return tide_loss(
            rows,
            self.W_enc,
            self.b_enc,
            self.W_dec,
            self.b_dec,
            k,
            **place._asdict(),
            layer_norm=self.config.pre_norm == "layernorm",
            paired=paired,
            weights=weights,
            s_target=s_target,
            delta=delta,
            dead=dead,
            k_aux=k_aux,
            backend=self.backend,
        )

    def regularisation(self) -> Tensor:
        """``R = |W_enc|^2 + |W_dec|^2`` (eq. 17)."""
        return self.W_enc.square().sum() + self.W_dec.square().sum()

    # -- initialisation from data -------------------------------------------------------------------------

    @torch.no_grad()
    def calibrate(
        self,
        x: Tensor,
        timestep: Tensor | float | None = None,
        conditioning: Tensor | None = None,
        group: Tensor | None = None,
        *,
        more: Sequence[Tensor] = (),
    ) -> Moments:
        """Starts what is taken from data and returns the moments of ``x [..., d_model]`` and ``more`` rows.

        From all of them the activation scale (so that the mean of |x|^2 / d is 1) and, with ``centre``, before it the
        mean. From ``x``: ``b_dec``, the mean of what is decoded (the activation; with ``undo`` the modulated one),
        ``b_enc`` so that the mean modulated activation encodes to zero, and what the activation function starts from.

        Raises :class:`~tide.errors.TideError` for activations that :func:`tide.sae.normalisation.measured` refuses, and
        where a start is not finite.
        """
        moments, scale = measured([self._rows(each) for each in (x, *more)], centre=self.config.centre)
        self.activation_scale.fill_(scale)
        if self.activation_mean is not None:
            self.activation_mean.copy_(moments.mean)
        rows, place = self._placed(x.float(), timestep, conditioning, group)
        modulated = self._modulated(rows, place)
        if self.b_dec is not None:
            self.b_dec.copy_((modulated if self.config.undo else rows).mean(0))
        if self.b_enc is not None:
            self.b_enc.copy_(-(self.W_enc @ modulated.mean(0)))
        if self.activation is not None:
            self.activation.calibrate(self.pre_activations(rows, place), self.config.k)
        self._check_finite()
        return moments

    def _check_finite(self) -> None:
        for name, value in self.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise TideError(
                    f"{name} is not finite once it starts from the first activations; "
                    "check the pipeline's weights, or train on another block"
                )

    # -- checkpoint ---------------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` to the folder ``path``."""
        from tide.sae.checkpoint import save

        save(self, Path(path))

    @classmethod
    def from_pretrained(cls, path: str | Path, *, backend: str = "auto", **expected: Any) -> TIDE:
        """Reads a checkpoint folder. ``expected`` (``d_model=``, ``block=``, ``family=``, ``tensor=``) is checked
        against what it was trained on."""
        from tide.sae.checkpoint import load

        return load(Path(path), backend=backend, **expected)


def _activation(config: TIDEConfig) -> Activation | None:
    """The activation's own parameters; None for TopK, which has none and is the kernels' own."""
    if config.activation == "jumprelu":
        return JumpReLU(config.n_latents, config.bandwidth)
    return None if config.activation == "topk" else ACTIVATIONS[config.activation](config.n_latents)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, the former mode restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)

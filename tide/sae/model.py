"""TIDE: a TopK sparse autoencoder whose input is modulated by the timestep (eqs 1, 2 and 8)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tide.errors import TideError
from tide.sae.modulation import Modulation, ModulationConfig
from tide_kernels import LossTerms, LossWeights, decode, encode_topk, modulate, tide_loss


@dataclass(frozen=True)
class TIDEConfig:
    """Everything needed to rebuild a :class:`TIDE`, and where it was trained.

    ``modulation=None`` is the plain TopK SAE. ``pre_norm`` is the input of the modulation: the activation as
    collected (eq. 8 literally) or its LayerNorm, as inside the model. ``undo`` also inverts the modulation at the
    output: ``(x_hat - shift) / (1 + scale)``.
    """

    d_model: int
    n_latents: int
    k: int
    modulation: ModulationConfig | None = None
    pre_norm: Literal["none", "layernorm"] = "none"
    undo: bool = False
    encoder_bias: bool = True
    decoder_bias: bool = True
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
        if self.modulation is None and (self.undo or self.pre_norm != "none"):
            raise TideError("undo and pre_norm belong to the modulation; give modulation=... or leave them off")
        if self.modulation is not None and self.modulation.d_model != self.d_model:
            raise TideError(
                f"the modulation has width {self.modulation.d_model} and the model {self.d_model}; they must be equal"
            )


class Codes(NamedTuple):
    """Sparse latents: ``values [N, k]``, ``indices [N, k]`` int32 ascending, unused places 0 and -1."""

    values: Tensor
    indices: Tensor

    def dense(self, n_latents: int) -> Tensor:
        """The latents as ``[N, n_latents]``, zeros where nothing fired."""
        out = self.values.new_zeros(len(self.values), n_latents)
        # Unused places hold the value 0, so that adding them to latent 0 changes nothing.
        return out.scatter_add_(1, self.indices.clamp(min=0).long(), self.values)


#: |1 + scale| is kept at least this far from zero when the modulation is undone (values of 6e-4 occur).
UNDO_FLOOR = 0.05


class TIDE(nn.Module):
    """``l = ReLU(W_enc x_mod + b_enc)``, ``z = TopK(l)``, ``x_hat = W_dec^T z + b_dec`` (eqs 1, 2).

    ``x_mod = x * (1 + scale) + shift`` (eq. 8), scale and shift a function of the timestep, started from the
    diffusion model's own adaLN. Both weights are ``[n_latents, d_model]``; the encoder starts as the decoder's
    transpose. Activations come and go in the diffusion model's units: they are divided by ``activation_scale``
    (their root mean square over tokens and channels, see :meth:`calibrate`) on the way in and multiplied on the
    way out.

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
        self.modulation: Modulation | None = None
        if modulation is not None and modulation.config != config.modulation:
            raise TideError(f"the modulation is not the config's ({config.modulation}); give both the same config")
        if config.modulation is not None:
            self.modulation = Modulation(config.modulation, generator) if modulation is None else modulation

    activation_scale: Tensor

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

    def _rows(self, x: Tensor, timestep: Tensor | float | None, group: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``x`` as ``[N, d_model]`` in normalised units, and the modulation group of each row."""
        if x.shape[-1] != self.d_model:
            raise TideError(
                f"activations have width {x.shape[-1]} and this TIDE {self.d_model}; "
                "use one trained on this block and model"
            )
        rows = x.reshape(-1, self.d_model)
        if group is None and self.modulation is not None and isinstance(timestep, Tensor) and timestep.numel() > 1:
            n_groups = timestep.numel()
            if len(rows) % n_groups:
                raise TideError(f"{len(rows)} rows cannot be shared by {n_groups} timesteps; pass group=")
            group = torch.arange(n_groups, device=x.device, dtype=torch.int32)
            group = group.repeat_interleave(len(rows) // n_groups)
        return rows / self.activation_scale.to(rows.dtype), None if self.modulation is None else group

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
        rows, group = self._rows(x, timestep, group)
        scale, shift = self._modulation_of(timestep, conditioning)
        values, indices = encode_topk(
            rows,
            self.W_enc.to(rows.dtype),
            None if self.b_enc is None else self.b_enc.to(rows.dtype),
            self.config.k if k is None else k,
            scale=None if scale is None else scale.to(rows.dtype),
            shift=None if shift is None else shift.to(rows.dtype),
            group=group,
            layer_norm=self.config.pre_norm == "layernorm",
            backend=self.backend,
        )
        return Codes(values, indices)

    def decode(
        self,
        codes: Codes,
        timestep: Tensor | float | None = None,
        conditioning: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """Activations ``[N, d_model]`` of sparse latents. Timestep, conditioning and group matter only with
        ``undo``."""
        dtype = codes.values.dtype
        bias = None if self.b_dec is None else self.b_dec.to(dtype)
        x_hat = decode(codes.values, codes.indices, self.W_dec.to(dtype), bias, backend=self.backend)
        if self.config.undo:
            x_hat = self._undo(x_hat, timestep, conditioning, group)
        return x_hat * self.activation_scale.to(dtype)

    def decode_dense(self, latents: Tensor) -> Tensor:
        """``latents [N, n_latents] @ W_dec`` in activation units, without the bias: a difference of latents
        decodes to a difference of activations."""
        if self.config.undo:
            raise TideError("decode_dense is linear and this TIDE undoes its modulation; use decode")
        return (latents @ self.W_dec.to(latents.dtype)) * self.activation_scale.to(latents.dtype)

    def _undo(
        self, x_hat: Tensor, timestep: Tensor | float | None, conditioning: Tensor | None, group: Tensor | None
    ) -> Tensor:
        scale, shift = self._modulation_of(timestep, conditioning)
        assert scale is not None
        assert shift is not None
        if group is None:
            group = torch.arange(len(scale), device=x_hat.device).repeat_interleave(len(x_hat) // len(scale))
        factor = 1 + scale.to(x_hat.dtype)
        factor = torch.where(factor < 0, -1.0, 1.0).to(factor.dtype) * factor.abs().clamp(min=UNDO_FLOOR)
        return (x_hat - shift.to(x_hat.dtype)[group.long()]) / factor[group.long()]

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
        """The training loss (eqs 13-16) on rows in activation units; every term in normalised units."""
        if self.config.undo:
            raise TideError("the fused loss does not undo the modulation; train with undo=False")
        rows, group = self._rows(x, timestep, group)
        scale, shift = self._modulation_of(timestep, conditioning)
        return tide_loss(
            rows,
            self.W_enc,
            self.b_enc,
            self.W_dec,
            self.b_dec,
            self.config.k if k is None else k,
            scale=scale,
            shift=shift,
            group=group,
            layer_norm=self.config.pre_norm == "layernorm",
            paired=paired,
            weights=LossWeights() if weights is None else weights,
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
    ) -> None:
        """Sets the activation scale (so that the mean of |x|^2 / d is 1), ``b_dec`` to the mean of what is decoded
        (the activation; with ``undo`` the modulated one), and ``b_enc`` so that the mean modulated activation encodes
        to zero."""
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise TideError(
                "the first activations hold NaN or inf, or there are none; "
                "collect them in bf16 or fp32, or from another block"
            )
        self.activation_scale.copy_(x.float().square().mean().sqrt().clamp(min=1e-12))
        rows, group = self._rows(x.float(), timestep, group)
        scale, shift = self._modulation_of(timestep, conditioning)
        modulated = rows
        if scale is not None and shift is not None:
            modulated = modulate(
                rows, scale, shift, group, layer_norm=self.config.pre_norm == "layernorm", backend=self.backend
            )
        if self.b_dec is not None:
            self.b_dec.copy_((modulated if self.config.undo else rows).mean(0))
        if self.b_enc is not None:
            self.b_enc.copy_(-(self.W_enc @ modulated.mean(0)))

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

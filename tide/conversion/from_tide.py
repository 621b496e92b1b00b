"""A TIDE as a :class:`~tide.conversion.plain.Plain`: units folded into the weights, and of eq. 8 a single timestep."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.sae import TIDE
from tide.sae.config import Activation
from tide.sae.model import inference
from tide.sae.modulation import ScaleShift
from tide.sae.position import At, Position


def plain_of(model: TIDE, at: At = None) -> Plain:
    """What ``model`` computes at the single position ``at``, of whose timestep nothing is left to depend on::

        W = W_enc * (1 + scale) / activation_scale        b = b_enc + W_enc @ shift

    A timestep is asked for where the model is modulated. Thresholds are those of this timestep; with ``undo`` the
    decoder is divided by ``1 + scale`` as the model divides what it decodes.

    Raises :class:`~tide.errors.TideError` for a modulated model without a position, or with positions of several
    groups; for a LayerNorm, which no matrix computes; for a position of a model that has no modulation; and where
    weights are no finite float32 once they are folded.
    """
    if model.layer_norm:
        raise TideError(
            "this TIDE takes the LayerNorm of its input (pre_norm = layernorm), which cannot be folded into weights; "
            "convert one trained with pre_norm = none"
        )
    if model.modulation is None and at is not None:
        raise TideError("this SAE does not depend on the timestep; leave the timestep out")
    if model.modulation is not None and at is None:
        raise TideError(
            "this TIDE depends on the timestep and an SAE of another library does not; give the timestep that it is to "
            "be frozen at (--at-timestep T)"
        )
    with inference(model):
        return _folded(model, _modulation_at(model, at))


def _modulation_at(model: TIDE, at: At) -> ScaleShift:
    conditioned = model.modulation is not None and model.modulation.config.conditioned
    if conditioned and Position.of(at).conditioning is None:
        raise TideError(
            "this TIDE also depends on the model's conditioning, which no option can give; call "
            "tide.conversion.write_sae with at=tide.sae.Position(timestep, conditioning)"
        )
    if model.modulation is not None and Position.of(at).timesteps(torch.device("cpu")).numel() != 1:
        raise TideError("an SAE of another library has one timestep and several are given; give one")
    return model.modulation_of(1, at)


def _folded(model: TIDE, modulation: ScaleShift) -> Plain:
    d = model.d_model
    scale, shift = (_double(each, d).reshape(d) for each in (modulation.scale, modulation.shift))
    W_enc, W_dec, b_dec = _double(model.W_enc), _double(model.W_dec), _double(model.b_dec, d)
    units, out = model.units, model.output_units
    moved = W_enc @ shift
    if model.config.undo:
        ones = ScaleShift(scale=scale.unsqueeze(0))
        W_dec, b_dec = model.unscaled(W_dec, ones), model.unscaled((b_dec - shift).unsqueeze(0), ones)[0]
    factor = (1 + scale) / _double(units.scale)
    plain = Plain(
        activation=model.config.activation,
        W_enc=W_enc * factor,
        b_enc=_double(model.b_enc, model.n_latents) + moved,
        W_dec=W_dec * _double(out.scale),
        b_dec=b_dec * _double(out.scale) + _double(out.mean, d),
        offset=_double(units.mean, d),
        k=model.config.k,
        prefixes=model.config.prefixes,
    )
    return _checked(_with_activation(plain, model, moved, modulation.threshold))


def _with_activation(plain: Plain, model: TIDE, moved: Tensor, threshold: Tensor | None) -> Plain:
    """``moved``: what the shift adds to every pre-activation."""
    kind: Activation = plain.activation
    if kind == "topk":
        return plain
    cut = _double(threshold, 1)
    cut = cut[0] if cut.dim() == 2 else cut  # of the only group
    if kind == "gated":
        own = dict(model.named_parameters())
        r_mag, b_mag = (_double(own[f"activation.{name}"]) for name in ("r_mag", "b_mag"))
        return replace(plain, b_enc=plain.b_enc - cut, r_mag=r_mag, b_mag=b_mag + r_mag.exp() * moved)
    if kind == "relu" and not bool(cut.any()):
        return plain
    if kind == "batch_topk" and cut.dim() == 0:
        return replace(plain, threshold=cut)
    return replace(plain, activation="jumprelu", threshold=cut.expand(plain.n_latents))


def _double(value: Tensor | None, n: int = 0) -> Tensor:
    """``value``, or ``n`` zeros, in float64 on the CPU."""
    return torch.zeros(n, dtype=torch.float64) if value is None else value.detach().cpu().double()


def _checked(plain: Plain) -> Plain:
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "offset"):
        if not bool(torch.isfinite(getattr(plain, name).float()).all()):
            raise TideError(
                f"{name} is not finite in float32 once scale and modulation are folded in; check the checkpoint"
            )
    return plain

"""A :class:`~tide.conversion.plain.Plain` as a TIDE without modulation."""

from __future__ import annotations

import torch
from torch import Tensor

from tide.conversion.about import Origin
from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.files.tensors import is_finite
from tide.sae import TIDE, TIDEConfig
from tide.sae.activation.gain import SPEED

#: Active latents that a config names where nobody knows them; inference does not depend on it.
UNKNOWN_K = 32
#: JumpReLU learns its thresholds' logarithms: a threshold of 0 becomes the smallest normal float32.
LEAST_THRESHOLD = torch.finfo(torch.float32).tiny


def tide_of(plain: Plain, origin: Origin) -> TIDE:
    """A plain SAE in evaluation mode with the latents and outputs of ``plain``, its activation scale 1.

    What ``plain`` subtracts from the input is the model's mean (``centre``). Raises :class:`~tide.errors.TideError` for
    an ``origin`` that is none (:class:`~tide.sae.TIDEConfig`), and for weights that are beyond float32 once the
    library's options are folded in.
    """
    config = TIDEConfig(
        d_model=plain.d_model,
        n_latents=plain.n_latents,
        k=min(UNKNOWN_K, plain.n_latents) if plain.k is None else plain.k,
        activation=plain.activation,
        centre=plain.centred,
        prefixes=plain.prefixes,
        block=origin.block,
        family=origin.family,
        pipeline=origin.pipeline,
        tensor=origin.tensor,
        target=origin.target,
    )
    model = TIDE(config)
    own = {"W_enc": plain.W_enc, "b_enc": plain.b_enc, "W_dec": plain.W_dec, "b_dec": plain.b_dec - plain.offset}
    if plain.centred:
        own["activation_mean"] = plain.offset
    own |= _activation(plain)
    if beyond := [name for name, value in own.items() if not is_finite(value.float())]:
        raise TideError(
            f"{beyond[0]} is not finite in float32 once the library's options are folded in; check what was saved"
        )
    model.load_state_dict({**model.state_dict(), **own})
    return model.eval()


def _activation(plain: Plain) -> dict[str, Tensor]:
    if plain.activation == "gated":
        assert plain.r_mag is not None
        assert plain.b_mag is not None
        return {"activation.r_mag": plain.r_mag, "activation.b_mag": plain.b_mag}
    if plain.threshold is None:
        return {}
    if plain.activation == "batch_topk":
        return {"activation.threshold": plain.threshold}
    return {"activation.slow_log_threshold": plain.threshold.clamp(min=LEAST_THRESHOLD).log() / SPEED}

"""Activation functions beside TopK, one small file each: baselines with the model's interface, in plain PyTorch."""

from __future__ import annotations

from tide.sae.activation.base import Activation, Firing, soft_count_penalty
from tide.sae.activation.batch_topk import BatchTopK
from tide.sae.activation.gated import Gated
from tide.sae.activation.jumprelu import JumpReLU
from tide.sae.activation.relu import ReLU

#: Name in the configuration -> class. "topk" is none of them: it is what the kernels compute.
ACTIVATIONS: dict[str, type[Activation]] = {
    "batch_topk": BatchTopK,
    "gated": Gated,
    "jumprelu": JumpReLU,
    "relu": ReLU,
}

#: Those whose thresholds may know the timestep.
TIMED = ("batch_topk", "jumprelu")

__all__ = [
    "ACTIVATIONS",
    "TIMED",
    "Activation",
    "BatchTopK",
    "Firing",
    "Gated",
    "JumpReLU",
    "ReLU",
    "soft_count_penalty",
]

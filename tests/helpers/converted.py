"""TIDEs of every kind with nothing at its default, to be converted, and how two SAEs are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.helpers.foreign_saes import D, K, N
from tide.sae import TIDE, TIDEConfig
from tide.sae.modulation import ModulationConfig

MODULATION = ModulationConfig(d_model=D, d_embedding=8, n_frequencies=16)

#: What is written -> the config of a TIDE; the timestep is asked for where it has a modulation.
TIDES: dict[str, dict[str, Any]] = {
    "topk": {"activation": "topk"},
    "topk centred": {"activation": "topk", "centre": True},
    "topk modulated": {"activation": "topk", "centre": True, "modulation": MODULATION},
    "topk undone": {"activation": "topk", "modulation": MODULATION, "undo": True},
    "topk without biases": {"activation": "topk", "encoder_bias": False, "decoder_bias": False},
    "batch_topk": {"activation": "batch_topk"},
    "batch_topk nested": {"activation": "batch_topk", "prefixes": (8, 16), "centre": True},
    "batch_topk timed": {"activation": "batch_topk", "modulation": MODULATION, "timestep_thresholds": True},
    "jumprelu": {"activation": "jumprelu", "centre": True},
    "jumprelu timed": {"activation": "jumprelu", "modulation": MODULATION, "timestep_thresholds": True},
    "relu": {"activation": "relu"},
    "relu matched": {"activation": "relu", "match_l0": True},
    "gated": {"activation": "gated", "centre": True},
    "gated modulated": {"activation": "gated", "match_l0": True, "modulation": MODULATION},
}
TRANSCODERS: dict[str, dict[str, Any]] = {
    f"{activation} transcoder": {"activation": activation, "target": "attention", "tensor": "attention_input", **more}
    for activation, more in {
        "topk": {"modulation": MODULATION},
        "batch_topk": {"centre": True},
        "jumprelu": {},
        "relu": {},
    }.items()
}
#: Library -> activations that it has, and those of its transcoders.
WRITTEN = {
    "saelens": (("topk", "batch_topk", "jumprelu", "relu", "gated"), ("batch_topk", "jumprelu", "relu")),
    "sparsify": (("topk",), ("topk",)),
    "dictionary_learning": (("topk", "batch_topk", "jumprelu", "relu", "gated"), ()),
    "overcomplete": (("topk", "batch_topk", "jumprelu", "relu"), ()),
}
ALL = {**TIDES, **TRANSCODERS}
#: Library and name of a TIDE that it has a form for, and those that it has none for.
PAIRS = [
    (library, name)
    for library, (own, transcoders) in WRITTEN.items()
    for name, options in ALL.items()
    if options["activation"] in (transcoders if "target" in options else own)
]
REFUSED = [(library, name) for library in WRITTEN for name in ALL if (library, name) not in PAIRS]


def tide_of(name: str, *, seed: int = 0) -> TIDE:
    """The TIDE of :data:`ALL`, every parameter and buffer random."""
    config = TIDEConfig(d_model=D, n_latents=N, k=K, block=2, family="pixart", pipeline="p", **ALL[name])
    model, random = TIDE(config, seed=seed), torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for each, value in model.state_dict().items():
            scale = 0.3 if each.startswith("modulation") or each.endswith("_mag") else 1.0
            value.copy_(torch.randn(value.shape, generator=random) * scale)
            if each.endswith("_scale"):
                value.copy_(torch.tensor(1.7))
            elif each == "activation.threshold":
                value.copy_(torch.tensor(0.6))
            elif "threshold" in each or "activation.gain" in each:
                value.copy_(value * 0.05)
    return model.eval()


def timestep_of(name: str) -> float | None:
    return 310.0 if "modulation" in ALL[name] else None


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Within ``tolerance`` of the RMS of what is wanted: float32 has 6e-8, and sums of tens of products follow."""
    wanted = wanted.double()
    rms = wanted.square().mean().sqrt()
    assert float(rms) > 0.1
    assert float((found.double() - wanted).abs().max() / rms) < tolerance

"""overcomplete: ``overcomplete.json`` and ``overcomplete.safetensors``, a form of TIDE's own (docs/conversion.md).

The library has no checkpoint: people pickle modules, which nothing reads safely, or state dicts, which lack the class,
top_k and BatchTopK's running threshold. So its state dict stands beside a JSON with these.

Formulas of its version 0.3.0 with the encoder "linear"; D is the dictionary, normalised and times exp(multiplier)::

    SAE           z = ReLU(W x + b)                      y = z D
    TopKSAE       z = TopK(ReLU(W x + b))
    BatchTopKSAE  z = pre where pre >= running_threshold, else 0
    JumpSAE       z = pre where pre >= exp(thresholds), else 0

It has no decoder bias. ``centre``, where the JSON holds one, is subtracted from what is encoded and added to what is
decoded, by the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.conversion.about import Export, Foreign, Origin, nested_lost
from tide.conversion.checked import agree, checked, float32, matrix, positive, rounding, whole
from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.files import json_writer, read_json, read_tensors, tensors_writer
from tide.sae.config import Activation

CONFIG = "overcomplete.json"
WEIGHTS = "overcomplete.safetensors"
FORMAT = "tide-overcomplete/1"
_REMEDY = "save its state dict again, as docs/conversion.md shows"
_WEIGHT, _BIAS = "encoder.final_block.0.weight", "encoder.final_block.0.bias"
_DICTIONARY, _MULTIPLIER = "dictionary._weights", "dictionary.multiplier"
_CLASSES: dict[str, Activation] = {
    "SAE": "relu",
    "TopKSAE": "topk",
    "BatchTopKSAE": "batch_topk",
    "JumpSAE": "jumprelu",
}
#: Keeps l2 and l1 from dividing by 0, as in the library.
_EPS = 1e-8


@dataclass(frozen=True, kw_only=True)
class Config:
    """``overcomplete.json``. ``arguments`` are those of the class: input_shape, nb_concepts and the rest."""

    format: str
    cls: str
    arguments: dict[str, Any]
    running_threshold: float | None = None
    centre: list[float] | None = None
    tide: Origin | None = None


def read(folder: Path) -> Foreign:
    """Raises :class:`~tide.errors.TideError` for what is damaged, for other classes and for other encoders."""
    path = folder / CONFIG
    config = read_json(path, Config)
    kind, arguments = config["cls"], config["arguments"]
    if config["format"] != FORMAT or kind not in _CLASSES:
        raise TideError(f"{path} is of {kind[:40]!r}; convert one of {', '.join(_CLASSES)}, in the form {FORMAT}")
    if (encoder := arguments.get("encoder_module") or "linear") != "linear":
        raise TideError(f"{path}: a TIDE's encoder is linear, not {str(encoder)[:40]!r}; convert one of those")
    tensors = read_tensors(folder / WEIGHTS, "the SAE")
    plain = _plain(folder, config, tensors)
    origin = Origin.recorded(config.get("tide"), path)
    return Foreign(kind=kind, plain=plain, config=config, origin=origin, lost=rounding(tensors))


def _plain(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Plain:
    path, arguments, kind = folder / WEIGHTS, config["arguments"], config["cls"]
    n, d = matrix(path, tensors, _WEIGHT, _REMEDY)
    agree(folder / CONFIG, arguments, _REMEDY, input_shape=d, nb_concepts=n)
    shapes: dict[str, tuple[int, ...]] = {_WEIGHT: (n, d), _BIAS: (n,), _DICTIONARY: (n, d), _MULTIPLIER: ()}
    own = checked(path, tensors, shapes | ({"thresholds": (n,)} if kind == "JumpSAE" else {}), _REMEDY)
    centre = config.get("centre") or [0.0] * d
    if len(centre) != d:
        raise TideError(f"{folder / CONFIG}: centre has {len(centre)} numbers and the weights {d}; {_REMEDY}")
    offset = torch.tensor(centre, dtype=torch.float64)
    return Plain(
        activation=_CLASSES[kind],
        W_enc=own[_WEIGHT],
        b_enc=own[_BIAS],
        W_dec=_dictionary(path, own, arguments),
        b_dec=offset,
        offset=offset,
        # BatchTopK's top_k is of a whole batch and says nothing of a token.
        k=whole(folder / CONFIG, arguments, "top_k", n, _REMEDY) if kind == "TopKSAE" else None,
        threshold=_threshold(folder / CONFIG, config, own),
    )


def _dictionary(path: Path, own: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> Tensor:
    weights, options = own[_DICTIONARY], arguments.get("dictionary_params") or {}
    name = options.get("normalization", "l2") if isinstance(options, dict) else options
    if name != "identity":
        weights = weights / _divisor(path, weights, str(name))
    return weights * own[_MULTIPLIER].exp()


def _divisor(path: Path, weights: Tensor, name: str) -> Tensor:
    """What each row of the dictionary is divided by, as the library normalises it."""
    if name not in (powers := {"l2": 2, "max_l2": 2, "l1": 1, "max_l1": 1}):
        raise TideError(f"{path}: normalization {name[:40]!r} is unknown; save get_dictionary() with identity")
    norms = weights.norm(p=powers[name], dim=1, keepdim=True)
    if name in ("l2", "l1"):
        return norms + _EPS
    return positive(path, _DICTIONARY, norms.amax(0, keepdim=True), "its rows are divided by the largest norm")


def _threshold(path: Path, config: Mapping[str, Any], own: Mapping[str, Tensor]) -> Tensor | None:
    """What pre-activations have to exceed, where the library asks for at least: the float32 before it."""
    if config["cls"] == "JumpSAE":
        least = own["thresholds"].float().exp()
    elif config["cls"] == "BatchTopKSAE":
        if config.get("running_threshold") is None:
            raise TideError(f"{path} lacks running_threshold, without which BatchTopKSAE encodes nothing; {_REMEDY}")
        least = torch.tensor(config["running_threshold"], dtype=torch.float32)
    else:
        return None
    return torch.nextafter(least, torch.tensor(-1.0)).clamp(min=0).double()


def export(plain: Plain, folder: Path, origin: Origin, record: Mapping[str, Any]) -> Export:
    """Raises :class:`~tide.errors.TideError` for gated SAEs and transcoders, which the library has not."""
    if origin.target is not None or plain.activation == "gated":
        what = "gated SAEs" if origin.target is None else "transcoders"
        raise TideError(f"overcomplete has no {what}; convert to saelens")
    kind = next(name for name, activation in _CLASSES.items() if activation == plain.activation)
    plain = plain.subtracting(plain.b_dec)
    state = {_WEIGHT: plain.W_enc, _BIAS: plain.b_enc, _DICTIONARY: plain.W_dec, _MULTIPLIER: torch.zeros(())}
    arguments: dict[str, Any] = {
        "input_shape": plain.d_model,
        "nb_concepts": plain.n_latents,
        "encoder_module": "linear",
        "dictionary_params": {"normalization": "identity"},
    }
    config: dict[str, Any] = {"format": FORMAT, "cls": kind, "arguments": arguments, **record}
    if bool(plain.b_dec.any()):
        config["centre"] = plain.b_dec.float().tolist()
    if plain.activation == "topk":
        arguments["top_k"] = plain.k
    if plain.threshold is not None:
        least = torch.nextafter(plain.threshold.float(), torch.tensor(torch.inf))
        if kind == "JumpSAE":
            state["thresholds"] = least.double().log()
        else:
            config["running_threshold"] = float(least)
    files = {folder / WEIGHTS: tensors_writer(float32(**state)), folder / CONFIG: json_writer(config)}
    return Export(kind=kind, files=files, lost=_lost(plain, config))


def _lost(plain: Plain, config: Mapping[str, Any]) -> tuple[str, ...]:
    bias = f"a decoder bias inside the SAE: subtract centre of {CONFIG} from what is encoded, add it to what is decoded"
    return (
        *((nested_lost(plain),) if plain.prefixes else ()),
        *((bias,) if "centre" in config else ()),
        *(("k, which only trainings have",) if plain.activation != "topk" else ()),
    )

"""SAELens 6: ``cfg.json`` and ``sae_weights.safetensors``, as ``sae.save_model`` and ``save_inference_model`` write.

Formulas of its version 6.54.12, rows as vectors, W_enc ``[d_in, d_sae]`` and W_dec ``[d_sae, d_in]``::

    x' = x - b_dec if apply_b_dec_to_input, else x        y = z W_dec + b_dec
    standard  z = ReLU(x' W_enc + b_enc)
    topk      z = TopK(x' W_enc + b_enc), with rescale_acts_by_decoder_norm of latents times |W_dec|
    jumprelu  z = pre H(pre - threshold), which BatchTopK is saved as
    gated     z = H(x' W_enc + b_gate) ReLU(x' W_enc exp(r_mag) + b_mag)

A transcoder subtracts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tide.conversion.about import Export, Foreign, Origin, nested_lost
from tide.conversion.checked import agree, checked, matrix, positive, read_config, rounding, weights_writer, whole
from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.files import json_writer, read_tensors
from tide.sae.config import Activation

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
VERSION = "6.54.12"
_REMEDY = "save it again with SAELens 6"
#: Architecture -> activation.
_KINDS: dict[str, Activation] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
}
_BATCHED = ("batchtopk", "matryoshka_batchtopk")


def read(folder: Path) -> Foreign:
    """Raises :class:`~tide.errors.TideError` for what is damaged, and for options that no weights can stand for."""
    path = folder / CONFIG
    config = read_config(path, "SAELens")
    kind = _check(path, config)
    tensors = read_tensors(folder / WEIGHTS, "the SAE")
    plain = _plain(folder, kind, config, tensors)
    metadata = config["metadata"]
    plain, lost = _trained(plain, kind, metadata)
    return Foreign(
        kind=kind,
        plain=plain,
        config=config,
        origin=Origin.recorded(metadata.get("tide"), path),
        transcodes=kind.endswith("transcoder"),
        lost=(*lost, *rounding(tensors)),
    )


def _check(path: Path, config: Mapping[str, Any]) -> str:
    """The architecture."""
    metadata = config.get("metadata")
    version = re.match(r"(\d{1,4})\.", str(metadata.get("sae_lens_version"))) if isinstance(metadata, dict) else None
    if version is None or int(version[1]) < 6:
        raise TideError(f"{path} is not of SAELens 6; load it there and save it again")
    kind = config.get("architecture")
    if kind in _BATCHED:
        raise TideError(f"{path} is of a training of {kind}; save it with save_inference_model")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise TideError(f"{path}: a TIDE has no architecture {str(kind)[:40]!r}; convert one of {', '.join(_KINDS)}")
    if (scaled := config.get("normalize_activations", "none")) != "none":
        remedies = {
            "expected_average_only_in": "fold its factor with fold_activation_norm_scaling_factor and save it again",
            "covariance_whitening": "fold it with fold_activation_whitening and save it again",
        }
        remedy = remedies.get(str(scaled), "no weights can stand for it")
        raise TideError(f"{path}: normalize_activations is {str(scaled)[:40]!r}, which depends on other data; {remedy}")
    if (shape := config.get("reshape_activations", "none")) != "none":
        raise TideError(f"{path}: reshape_activations is {str(shape)[:40]!r}; convert an SAE of vectors, not of heads")
    return kind


def _plain(folder: Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Plain:
    path = folder / WEIGHTS
    d, n = matrix(path, tensors, "W_enc", _REMEDY)
    agree(folder / CONFIG, config, _REMEDY, d_in=d, d_sae=n)
    agree(folder / CONFIG, config, "a TIDE reconstructs what it reads", d_out=d)
    gated = _KINDS[kind] == "gated"
    names = ["b_gate", "b_mag", "r_mag"] if gated else ["b_enc"]
    names += ["threshold"] if _KINDS[kind] == "jumprelu" else []
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,), **{name: (n,) for name in names}}
    own = checked(path, tensors, shapes, _REMEDY)
    subtracts = config.get("apply_b_dec_to_input", True) is True and not kind.endswith("transcoder")
    plain = Plain(
        activation=_KINDS[kind],
        W_enc=own["W_enc"].T,
        b_enc=own["b_gate" if gated else "b_enc"],
        W_dec=own["W_dec"],
        b_dec=own["b_dec"],
        offset=own["b_dec"] if subtracts else torch.zeros_like(own["b_dec"]),
        k=whole(folder / CONFIG, config, "k", n, _REMEDY) if kind == "topk" else None,
        threshold=own["threshold"].clamp(min=0) if "threshold" in own else None,
        r_mag=own.get("r_mag"),
        b_mag=own.get("b_mag"),
    )
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm", False) is True:
        why = "rescale_acts_by_decoder_norm divides by its norm"
        plain = plain.rescaled(positive(path, "W_dec", plain.W_dec.norm(dim=1), why))
    return plain


def _trained(plain: Plain, kind: str, metadata: Mapping[str, Any]) -> tuple[Plain, tuple[str, ...]]:
    """With what the metadata say of a training: BatchTopK with its k and its nested dictionaries."""
    details = metadata.get("training_architecture_details")
    details = details if isinstance(details, dict) else {}
    if plain.threshold is None or kind.endswith("transcoder") or metadata.get("training_architecture") not in _BATCHED:
        return plain, ()
    lost: tuple[str, ...] = ()
    if bool((plain.threshold == plain.threshold[0]).all()):
        plain = replace(plain, activation="batch_topk", threshold=plain.threshold[0])
    k = details.get("k")
    if isinstance(k, int | float) and not isinstance(k, bool) and 1 <= k <= plain.n_latents:
        lost = () if k == int(k) else (f"the fraction of k = {k:g}",)
        plain = replace(plain, k=int(k))
    widths = details.get("matryoshka_widths")
    if isinstance(widths, list) and all(type(each) is int for each in widths):
        inner = tuple(each for each in widths if 0 < each < plain.n_latents)
        plain = replace(plain, prefixes=inner if inner == tuple(sorted(set(inner))) else ())
    return plain, lost


def export(plain: Plain, folder: Path, origin: Origin, record: Mapping[str, Any]) -> Export:
    """Raises :class:`~tide.errors.TideError` for a transcoder of an activation that SAELens has none for."""
    transcodes = origin.target is not None
    if transcodes and plain.activation in ("topk", "gated"):
        raise TideError(f"SAELens has no {plain.activation} transcoder; convert one of relu, jumprelu or batch_topk")
    kind = {"relu": "standard", "batch_topk": "jumprelu"}.get(plain.activation, plain.activation)
    kind = {"standard": "transcoder"}.get(kind, f"{kind}_transcoder") if transcodes else kind
    plain = plain.subtracting(plain.b_dec if plain.centred and not transcodes else torch.zeros_like(plain.offset))
    tensors = {"W_enc": plain.W_enc.T, "W_dec": plain.W_dec, "b_dec": plain.b_dec}
    if plain.r_mag is not None and plain.b_mag is not None:
        tensors |= {"b_gate": plain.b_enc, "b_mag": plain.b_mag, "r_mag": plain.r_mag}
    else:
        tensors["b_enc"] = plain.b_enc
    if plain.threshold is not None:
        tensors["threshold"] = plain.threshold.expand(plain.n_latents)
    config: dict[str, Any] = {
        "d_in": plain.d_model,
        "d_sae": plain.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": plain.centred,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": kind,
        "metadata": {"sae_lens_version": VERSION, "sae_lens_training_version": VERSION, **_training(plain), **record},
    }
    config |= {"k": plain.k, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}
    config |= {"d_out": plain.d_model} if transcodes else {}
    files = {folder / WEIGHTS: weights_writer(**tensors), folder / CONFIG: json_writer(config)}
    return Export(kind=kind, files=files, lost=_lost(plain, kind))


def _training(plain: Plain) -> dict[str, Any]:
    if plain.activation != "batch_topk":
        return {}
    widths = {"matryoshka_widths": [*plain.prefixes, plain.n_latents]} if plain.prefixes else {}
    name = _BATCHED[1] if widths else _BATCHED[0]
    return {"training_architecture": name, "training_architecture_details": {"k": plain.k, **widths}}


def _lost(plain: Plain, kind: str) -> tuple[str, ...]:
    nested = plain.prefixes and plain.activation != "batch_topk"
    return (
        *((nested_lost(plain),) if nested else ()),
        *(("k, which only trainings have",) if kind != "topk" and plain.activation != "batch_topk" else ()),
    )

"""sparsify (``eai-sparsify``): for each hookpoint a folder with ``cfg.json`` and ``sae.safetensors``.

Formulas of its version 1.3.3, whose only activation that a TIDE has is TopK; encoder.weight and W_dec are
``[num_latents, d_in]``::

    z = TopK(ReLU(encoder.weight (x - b_dec) + encoder.bias))        y = W_dec^T z + b_dec

A transcoder does not subtract b_dec.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tide.conversion.about import Export, Foreign, Origin, nested_lost
from tide.conversion.checked import agree, checked, matrix, read_config, rounding, weights_writer, whole
from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.files import json_writer, read_tensors

CONFIG = "cfg.json"
WEIGHTS = "sae.safetensors"
_REMEDY = "save it again with sparsify"


def read(folder: Path) -> Foreign:
    """Raises :class:`~tide.errors.TideError` for what is damaged, for groups and for skip connections."""
    path = folder / CONFIG
    config = read_config(path, "sparsify")
    if (kind := config.get("activation", "topk")) != "topk":
        raise TideError(f"{path}: a TIDE has no activation {str(kind)[:40]!r}; convert one of topk")
    if config.get("skip_connection", False) is True:
        raise TideError(f"{path}: a TIDE has no skip connection (skip_connection); convert an SAE without one")
    tensors = read_tensors(folder / WEIGHTS, "the SAE")
    n, d = matrix(folder / WEIGHTS, tensors, "encoder.weight", _REMEDY)
    agree(path, config, _REMEDY, d_in=d)
    if config.get("num_latents"):
        agree(path, config, _REMEDY, num_latents=n)
    shapes = {"encoder.weight": (n, d), "encoder.bias": (n,), "W_dec": (n, d), "b_dec": (d,)}
    own = checked(folder / WEIGHTS, tensors, shapes, _REMEDY)
    transcodes = config.get("transcode", False) is True
    plain = Plain(
        activation="topk",
        W_enc=own["encoder.weight"],
        b_enc=own["encoder.bias"],
        W_dec=own["W_dec"],
        b_dec=own["b_dec"],
        offset=torch.zeros_like(own["b_dec"]) if transcodes else own["b_dec"],
        k=whole(path, config, "k", n, _REMEDY),
    )
    return Foreign(
        kind="transcoder" if transcodes else "topk",
        plain=plain,
        config=config,
        origin=Origin.recorded(config.get("tide"), path),
        transcodes=transcodes,
        lost=rounding(tensors),
    )


def export(plain: Plain, folder: Path, origin: Origin, record: Mapping[str, Any]) -> Export:
    """Raises :class:`~tide.errors.TideError` for every activation but TopK."""
    if plain.activation != "topk":
        raise TideError(f"sparsify has no {plain.activation} SAE, only topk; convert to saelens or dictionary_learning")
    transcodes = origin.target is not None
    plain = plain.subtracting(torch.zeros_like(plain.offset) if transcodes else plain.b_dec)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, plain.n_latents // plain.d_model),
        "normalize_decoder": False,
        "num_latents": plain.n_latents,
        "k": plain.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": transcodes,
        "d_in": plain.d_model,
        **record,
    }
    weights = weights_writer(
        encoder__weight=plain.W_enc, encoder__bias=plain.b_enc, W_dec=plain.W_dec, b_dec=plain.b_dec
    )
    return Export(
        kind="transcoder" if transcodes else "topk",
        files={folder / WEIGHTS: weights, folder / CONFIG: json_writer(config)},
        lost=(nested_lost(plain),) if plain.prefixes else (),
    )

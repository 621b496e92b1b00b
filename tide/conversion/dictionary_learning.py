"""dictionary_learning: ``config.json`` and ``ae.pt``, a state dict that torch pickled (:mod:`tide.conversion.pickled`).

Formulas of its version 0.1.0, as ``utils.load_dictionary`` loads them::

    AutoEncoder           z = ReLU(encoder (x - bias)), latents times the norms of the decoder's columns
    AutoEncoderNew        z = ReLU(encoder x)
    AutoEncoderTopK       z = TopK(ReLU(encoder (x - b_dec)))
    BatchTopKSAE          z = pre H(pre - threshold), pre = ReLU(encoder (x - b_dec))
    MatryoshkaBatchTopKSAE   the same, nested
    JumpReluAutoEncoder   z = ReLU(pre H(pre - threshold)), pre = x W_enc + b_enc
    GatedAutoEncoder      z = H(u + gate_bias) ReLU(exp(r_mag) u + mag_bias), u = encoder (x - decoder_bias)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tide.conversion.about import Export, Foreign, Origin, nested_lost
from tide.conversion.checked import agree, checked, float32, matrix, positive, read_config, rounding, whole
from tide.conversion.pickled import read_state_dict
from tide.conversion.plain import Plain
from tide.errors import TideError
from tide.files import json_writer
from tide.sae.config import Activation

CONFIG = "config.json"
WEIGHTS = "ae.pt"
_REMEDY = "save it again with dictionary_learning"


class _Layout(NamedTuple):
    """How a class names its tensors. ``linear``: its weights are those of nn.Linear, ``[out, in]``."""

    activation: Activation
    linear: bool
    b_enc: str
    b_dec: str
    subtracts: bool
    further: tuple[str, ...] = ()


_COUNTED = ("k", "threshold")
_CLASSES = {
    "AutoEncoder": _Layout("relu", True, "encoder.bias", "bias", True),
    "AutoEncoderNew": _Layout("relu", True, "encoder.bias", "decoder.bias", False),
    "AutoEncoderTopK": _Layout("topk", True, "encoder.bias", "b_dec", True, _COUNTED),
    "BatchTopKSAE": _Layout("batch_topk", True, "encoder.bias", "b_dec", True, _COUNTED),
    "MatryoshkaBatchTopKSAE": _Layout("batch_topk", False, "b_enc", "b_dec", True, (*_COUNTED, "group_sizes")),
    "JumpReluAutoEncoder": _Layout("jumprelu", False, "b_enc", "b_dec", False, ("threshold",)),
    "GatedAutoEncoder": _Layout("gated", True, "gate_bias", "decoder_bias", True, ("r_mag", "mag_bias")),
}


def read(folder: Path) -> Foreign:
    """Raises :class:`~tide.errors.TideError` for what is damaged or of a class that is not listed above."""
    path = folder / CONFIG
    config = read_config(path, "dictionary_learning")
    trainer = config.get("trainer")
    kind = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or not isinstance(kind, str) or kind not in _CLASSES:
        raise TideError(f"{path}: trainer.dict_class is {str(kind)[:40]!r}; convert one of {', '.join(_CLASSES)}")
    tensors = read_state_dict(folder / WEIGHTS)
    plain, lost = _plain(folder, kind, trainer, tensors)
    origin = Origin.recorded(config.get("tide"), path)
    return Foreign(kind=kind, plain=plain, config=config, origin=origin, lost=(*lost, *rounding(tensors)))


def _plain(
    folder: Path, kind: str, trainer: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Plain, tuple[str, ...]]:
    layout, path = _CLASSES[kind], folder / WEIGHTS
    weight = "encoder.weight" if layout.linear else "W_enc"
    shape = matrix(path, tensors, weight, _REMEDY)
    n, d = shape if layout.linear else shape[::-1]
    agree(folder / CONFIG, trainer, _REMEDY, activation_dim=d, dict_size=n)
    own = checked(path, tensors, _shapes(layout, n, d, tensors), _REMEDY, **_whole(layout))
    W_dec = own["decoder.weight"].T if layout.linear else own["W_dec"]
    b_dec, threshold = own[layout.b_dec], own.get("threshold")
    plain = Plain(
        activation=layout.activation,
        W_enc=own[weight] if layout.linear else own[weight].T,
        b_enc=own[layout.b_enc],
        W_dec=W_dec,
        b_dec=b_dec,
        offset=b_dec if layout.subtracts else torch.zeros_like(b_dec),
        k=_k(folder, trainer, own, n) if "k" in layout.further else None,
        threshold=None if threshold is None or kind == "AutoEncoderTopK" else threshold.clamp(min=0),
        r_mag=own.get("r_mag"),
        b_mag=own.get("mag_bias"),
        prefixes=_prefixes(path, own, n),
    )
    if kind == "AutoEncoder":
        norms = positive(path, "decoder.weight", W_dec.norm(dim=1), "its loader divides by its norm")
        # Its loader leaves norms that are as good as 1.
        if not torch.allclose(norms.float(), torch.ones(n)):
            return plain.rescaled(norms), ("the norms of the decoder, as load_dictionary folds them into the encoder",)
    known = kind == "AutoEncoderTopK" and threshold is not None and float(threshold) >= 0
    return plain, ("the threshold of encode(use_threshold=True)",) if known else ()


def _shapes(layout: _Layout, n: int, d: int, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    matrices: dict[str, tuple[int, ...]] = (
        {"encoder.weight": (n, d), "decoder.weight": (d, n)} if layout.linear else {"W_enc": (d, n), "W_dec": (n, d)}
    )
    of_latents: dict[str, tuple[int, ...]] = {name: (n,) for name in (layout.b_enc, *layout.further)}
    if "k" in layout.further:
        of_latents |= {"k": (), "threshold": ()}
    if "group_sizes" in layout.further:
        groups = tensors.get("group_sizes")
        of_latents["group_sizes"] = (0 if groups is None else groups.numel(),)
    return {**matrices, layout.b_dec: (d,), **of_latents}


def _whole(layout: _Layout) -> dict[str, torch.dtype]:
    kinds = {"k": torch.int32, "group_sizes": torch.int64}
    return {name: kind for name, kind in kinds.items() if name in layout.further}


def _k(folder: Path, trainer: Mapping[str, Any], own: Mapping[str, Tensor], n: int) -> int:
    k = whole(folder / WEIGHTS, {"k": int(own["k"])}, "k", n, _REMEDY)
    agree(folder / CONFIG, trainer, _REMEDY, k=k)
    return k


def _prefixes(path: Path, own: Mapping[str, Tensor], n: int) -> tuple[int, ...]:
    """The nested dictionaries of groups that follow one another."""
    if "group_sizes" not in own:
        return ()
    sizes = own["group_sizes"].tolist()
    if min(sizes, default=0) < 1 or sum(sizes) != n:
        raise TideError(f"{path}: group_sizes do not add up to the {n} latents; {_REMEDY}")
    return tuple(accumulate(sizes[:-1]))


def export(plain: Plain, folder: Path, origin: Origin, record: Mapping[str, Any]) -> Export:
    """Raises :class:`~tide.errors.TideError` for a transcoder, which the library has not."""
    if origin.target is not None:
        raise TideError("dictionary_learning has no transcoders; convert to saelens or sparsify")
    kind = {
        # AutoEncoder's loader would rescale the latents.
        "relu": "AutoEncoderNew",
        "topk": "AutoEncoderTopK",
        "batch_topk": "MatryoshkaBatchTopKSAE" if plain.prefixes else "BatchTopKSAE",
        "jumprelu": "JumpReluAutoEncoder",
        "gated": "GatedAutoEncoder",
    }[plain.activation]
    layout = _CLASSES[kind]
    plain = plain.subtracting(plain.b_dec if layout.subtracts else torch.zeros_like(plain.b_dec))
    state = float32(**_state(plain, layout))
    trainer = {"dict_class": kind, "activation_dim": plain.d_model, "dict_size": plain.n_latents}
    trainer |= {"k": plain.k} if "k" in layout.further else {}
    config = {"trainer": trainer, **record}
    lost = (
        *((nested_lost(plain),) if plain.prefixes and "group_sizes" not in layout.further else ()),
        *(("k, which only trainings have",) if "k" not in layout.further else ()),
    )
    files = {folder / WEIGHTS: lambda path: torch.save(state, path), folder / CONFIG: json_writer(config)}
    return Export(kind=kind, files=files, lost=lost)


def _state(plain: Plain, layout: _Layout) -> dict[str, Tensor]:
    names = ("encoder.weight", "decoder.weight") if layout.linear else ("W_enc", "W_dec")
    matrices = (plain.W_enc, plain.W_dec.T) if layout.linear else (plain.W_enc.T, plain.W_dec)
    state = {**dict(zip(names, matrices, strict=True)), layout.b_enc: plain.b_enc, layout.b_dec: plain.b_dec}
    if plain.r_mag is not None and plain.b_mag is not None:
        state |= {"r_mag": plain.r_mag, "mag_bias": plain.b_mag}
    if "threshold" in layout.further:
        # TopK's is for use_threshold=True; -1 is none.
        none = torch.tensor(-1.0, dtype=torch.float64)
        state["threshold"] = none if plain.threshold is None else plain.threshold
    if "k" in layout.further:
        state["k"] = torch.tensor(plain.k, dtype=torch.int32)
    if "group_sizes" in layout.further:
        ends = torch.tensor([0, *plain.prefixes, plain.n_latents])
        state["group_sizes"] = ends.diff()
    return state

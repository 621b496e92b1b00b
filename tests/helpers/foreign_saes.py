"""Folders of other libraries' SAEs as those libraries lay them out, and their formulas written out in float64.

Nothing here uses the libraries or :mod:`tide.conversion`. ``tests/conversion`` compares with both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

N, D, K = 24, 6, 5


class Naive(NamedTuple):
    """Latents ``[rows, n]`` and outputs ``[rows, d]``, and how far each row is from having other active latents."""

    z: Tensor
    y: Tensor
    margin: Tensor


Function = Callable[[Tensor], Naive]

#: Library -> its kinds.
KINDS = {
    "saelens": (
        "standard", "topk", "topk rescaled", "jumprelu", "batchtopk", "matryoshka_batchtopk", "gated", "transcoder",
        "jumprelu_transcoder",
    ),
    "sparsify": ("topk", "transcoder"),
    "dictionary_learning": (
        "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder", "GatedAutoEncoder",
    ),
    "overcomplete": ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE", "TopKSAE max_l2", "SAE l1", "SAE multiplied"),
}  # fmt: skip
CASES = [(library, kind) for library, kinds in KINDS.items() for kind in kinds]


def write_foreign(folder: Path, library: str, kind: str, *, seed: int = 0, subtracts: bool = True) -> None:
    """A folder of random weights; ``subtracts`` is SAELens's ``apply_b_dec_to_input``."""
    folder.mkdir(parents=True, exist_ok=True)
    random = torch.Generator().manual_seed(seed)
    if library == "saelens":
        _write_saelens(folder, kind, random, subtracts)
    elif library == "sparsify":
        _write_sparsify(folder, kind, random)
    elif library == "dictionary_learning":
        _write_dictionary_learning(folder, kind, random)
    else:
        _write_overcomplete(folder, kind, random)


def function_of(folder: Path) -> Function:
    """What the library computes from the files of a folder."""
    for file, function in _FUNCTIONS.items():
        if (folder / file).exists():
            return function(folder)
    raise AssertionError(f"{folder} holds no SAE")


def rows_apart(function: Function, n: int = 200, *, seed: int = 1) -> Tensor:
    """Rows ``[.., D]`` of which rounding cannot change the active latents."""
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2
    apart = x[function(x.double()).margin > 1e-4]
    assert len(apart) > n // 2
    return apart


# -- activations -----------------------------------------------------------------------------------------------------


def _relu(pre: Tensor) -> tuple[Tensor, Tensor]:
    return pre.relu(), torch.full((len(pre),), torch.inf)


def _topk(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    least = pre.relu().sort(dim=1, descending=True).values
    return torch.where(pre >= least[:, k - 1 : k], pre.relu(), 0), least[:, k - 1] - least[:, k]


def _above(pre: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(pre > threshold, pre.relu(), 0), (pre - threshold.clamp(min=0)).abs().amin(1)


def _gated(u: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor) -> tuple[Tensor, Tensor]:
    gate = u + b_gate
    return (gate > 0) * (r_mag.exp() * u + b_mag).relu(), gate.abs().amin(1)


# -- SAELens ---------------------------------------------------------------------------------------------------------


def _write_saelens(folder: Path, kind: str, random: torch.Generator, subtracts: bool) -> None:
    transcodes, batched = kind.endswith("transcoder"), kind.endswith("batchtopk")
    tensors = {"W_enc": _randn(random, D, N), "W_dec": _randn(random, N, D), "b_dec": _randn(random, D)}
    if kind == "gated":
        tensors |= {name: _randn(random, N) / 2 for name in ("b_gate", "b_mag", "r_mag")}
    else:
        tensors["b_enc"] = _randn(random, N)
    if batched:
        tensors["threshold"] = torch.full((N,), 1.3)
    elif kind.startswith("jumprelu"):
        tensors["threshold"] = torch.rand(N, generator=random) * 3
    details = {"k": K} | ({"matryoshka_widths": [8, 16, N]} if kind.startswith("matryoshka") else {})
    training = {"training_architecture": kind, "training_architecture_details": details} if batched else {}
    config = {
        "d_in": D,
        "d_sae": N,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": subtracts and not transcodes,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "architecture": "jumprelu" if batched else kind.split()[0],
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2", **training},
    }
    config |= {"k": K, "rescale_acts_by_decoder_norm": "rescaled" in kind} if kind.startswith("topk") else {}
    config |= {"d_out": D} if transcodes else {}
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def _saelens(folder: Path) -> Function:
    config, w = _config(folder / "cfg.json"), _doubles(load_file(folder / "sae_weights.safetensors"))
    kind = config["architecture"]

    def run(x: Tensor) -> Naive:
        if config["apply_b_dec_to_input"] and not kind.endswith("transcoder"):
            x = x - w["b_dec"]
        u, W_dec = x @ w["W_enc"], w["W_dec"]
        if kind == "gated":
            z, margin = _gated(u, w["b_gate"], w["r_mag"], w["b_mag"])
        elif kind == "topk":
            norms = W_dec.norm(dim=1) if config["rescale_acts_by_decoder_norm"] else torch.ones(N).double()
            z, margin = _topk((u + w["b_enc"]) * norms, config["k"])
            W_dec = W_dec / norms[:, None]
        else:
            pre = u + w["b_enc"]
            z, margin = _above(pre, w["threshold"]) if "threshold" in w else _relu(pre)
        return Naive(z, z @ W_dec + w["b_dec"], margin)

    return run


# -- sparsify --------------------------------------------------------------------------------------------------------


def _write_sparsify(folder: Path, kind: str, random: torch.Generator) -> None:
    tensors = {
        "encoder.weight": _randn(random, N, D),
        "encoder.bias": _randn(random, N),
        "W_dec": _randn(random, N, D),
        "b_dec": _randn(random, D),
    }
    config = {"activation": "topk", "expansion_factor": N // D, "normalize_decoder": True, "num_latents": 0, "k": K}
    config |= {"multi_topk": False, "skip_connection": False, "transcode": kind == "transcoder", "d_in": D}
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def _sparsify(folder: Path) -> Function:
    config, w = _config(folder / "cfg.json"), _doubles(load_file(folder / "sae.safetensors"))

    def run(x: Tensor) -> Naive:
        x = x if config["transcode"] else x - w["b_dec"]
        z, margin = _topk(x @ w["encoder.weight"].T + w["encoder.bias"], config["k"])
        return Naive(z, z @ w["W_dec"] + w["b_dec"], margin)

    return run


# -- dictionary_learning ---------------------------------------------------------------------------------------------


def _write_dictionary_learning(folder: Path, kind: str, random: torch.Generator) -> None:
    linear = kind not in ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
    if linear:
        tensors = {"encoder.weight": _randn(random, N, D), "decoder.weight": _randn(random, D, N)}
    else:
        tensors = {"W_enc": _randn(random, D, N), "W_dec": _randn(random, N, D)}
    biases = {
        "AutoEncoder": ("encoder.bias", "bias"),
        "AutoEncoderNew": ("encoder.bias", "decoder.bias"),
        "GatedAutoEncoder": ("gate_bias", "decoder_bias"),
    }.get(kind, ("encoder.bias" if linear else "b_enc", "b_dec"))
    tensors |= {biases[0]: _randn(random, N), biases[1]: _randn(random, D)}
    if kind == "GatedAutoEncoder":
        tensors |= {"r_mag": _randn(random, N) / 2, "mag_bias": _randn(random, N) / 2}
    if kind == "JumpReluAutoEncoder":
        tensors["threshold"] = torch.rand(N, generator=random) * 3
    if "TopK" in kind:
        tensors |= {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(1.3)}
    if kind.startswith("Matryoshka"):
        tensors["group_sizes"] = torch.tensor([8, 8, N - 16])
    torch.save(tensors, folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": N, "lr": 1e-4, "layer": 3, "lm_name": "gpt2"}
    trainer |= {"k": K} if "TopK" in kind else {}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))


def _dictionary_learning(folder: Path) -> Function:
    kind = _config(folder / "config.json")["trainer"]["dict_class"]
    w = _doubles(torch.load(folder / "ae.pt", weights_only=True))

    def run(x: Tensor) -> Naive:
        if kind == "JumpReluAutoEncoder":
            z, margin = _above(x @ w["W_enc"] + w["b_enc"], w["threshold"])
            return Naive(z, z @ w["W_dec"] + w["b_dec"], margin)
        if kind == "MatryoshkaBatchTopKSAE":
            z, margin = _above((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], w["threshold"])
            return Naive(z, z @ w["W_dec"] + w["b_dec"], margin)
        W_enc, W_dec = w["encoder.weight"].T, w["decoder.weight"].T
        if kind == "GatedAutoEncoder":
            z, margin = _gated((x - w["decoder_bias"]) @ W_enc, w["gate_bias"], w["r_mag"], w["mag_bias"])
            return Naive(z, z @ W_dec + w["decoder_bias"], margin)
        if kind == "AutoEncoderNew":
            z, margin = _relu(x @ W_enc + w["encoder.bias"])
            return Naive(z, z @ W_dec + w["decoder.bias"], margin)
        bias = w["bias" if kind == "AutoEncoder" else "b_dec"]
        pre = (x - bias) @ W_enc + w["encoder.bias"]
        if kind == "AutoEncoder":  # as its loader rescales it
            norms = W_dec.norm(dim=1)
            z, margin = _relu(pre * norms)
            return Naive(z, z @ (W_dec / norms[:, None]) + bias, margin)
        z, margin = _topk(pre, int(w["k"])) if kind == "AutoEncoderTopK" else _above(pre, w["threshold"])
        return Naive(z, z @ W_dec + bias, margin)

    return run


# -- overcomplete ----------------------------------------------------------------------------------------------------


def _write_overcomplete(folder: Path, kind: str, random: torch.Generator) -> None:
    cls, _, option = kind.partition(" ")
    tensors = {
        "encoder.final_block.0.weight": _randn(random, N, D),
        "encoder.final_block.0.bias": _randn(random, N),
        "dictionary._weights": _randn(random, N, D),
        "dictionary.multiplier": torch.tensor(0.4 if option == "multiplied" else 0.0),
    }
    if cls == "JumpSAE":
        tensors["thresholds"] = _randn(random, N) / 2
    arguments: dict[str, Any] = {"input_shape": D, "nb_concepts": N}
    if cls in ("TopKSAE", "BatchTopKSAE"):
        arguments["top_k"] = K if cls == "TopKSAE" else 40 * K
    if option in ("max_l2", "l1"):
        arguments["dictionary_params"] = {"normalization": option}
    config = {"format": "tide-overcomplete/1", "cls": cls, "arguments": arguments}
    config |= {"running_threshold": 1.25} if cls == "BatchTopKSAE" else {}
    save_file(tensors, folder / "overcomplete.safetensors")
    (folder / "overcomplete.json").write_text(json.dumps(config))


def _overcomplete(folder: Path) -> Function:
    config, w = _config(folder / "overcomplete.json"), _doubles(load_file(folder / "overcomplete.safetensors"))
    options = config["arguments"].get("dictionary_params", {}).get("normalization", "l2")
    weights = w["dictionary._weights"]
    divisor = {
        "l2": weights.norm(dim=1, keepdim=True) + 1e-8,
        "max_l2": weights.norm(dim=1).max(),
        "l1": weights.abs().sum(1, keepdim=True) + 1e-8,
        "identity": torch.ones(()),
    }[options]
    dictionary = weights / divisor * w["dictionary.multiplier"].exp()
    centre = torch.tensor(config.get("centre", [0.0] * D), dtype=torch.float64)

    def run(x: Tensor) -> Naive:
        pre = (x - centre) @ w["encoder.final_block.0.weight"].T + w["encoder.final_block.0.bias"]
        if config["cls"] == "TopKSAE":
            z, margin = _topk(pre, config["arguments"]["top_k"])
        elif config["cls"] == "BatchTopKSAE":
            z, margin = _above(pre, torch.tensor(config["running_threshold"]).double())
        elif config["cls"] == "JumpSAE":
            z, margin = _above(pre, w["thresholds"].exp())
        else:
            z, margin = _relu(pre)
        return Naive(z, z @ dictionary + centre, margin)

    return run


_FUNCTIONS: dict[str, Callable[[Path], Function]] = {
    "sae_weights.safetensors": _saelens,
    "sae.safetensors": _sparsify,
    "ae.pt": _dictionary_learning,
    "overcomplete.safetensors": _overcomplete,
}


def _randn(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)


def _doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in tensors.items()}


def _config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found

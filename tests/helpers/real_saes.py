"""The libraries themselves, in place of :mod:`tests.helpers.foreign_saes`: they make and save SAEs, and load ours.

A library is imported when a test of it runs; they take seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.foreign_saes import D, K, N

#: Library -> the name of its package.
PACKAGES = {
    "saelens": "sae_lens",
    "sparsify": "sparsify",
    "dictionary_learning": "dictionary_learning",
    "overcomplete": "overcomplete",
}
Real = Callable[[Tensor], tuple[Tensor, Tensor]]


def need(library: str) -> None:
    """Skips a test of a library that is not installed; with TIDE_PARITY=1, as `make parity` sets it, fails it."""
    if importlib.util.find_spec(PACKAGES[library]) is None:
        reason = f"{PACKAGES[library]} is not installed; `make parity` installs all of them"
        if os.environ.get("TIDE_PARITY") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def randomised(sae: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Every parameter and buffer of floats random, thresholds positive."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in sae.state_dict().items():
            if not value.is_floating_point() or name.endswith("multiplier"):
                continue
            value.copy_(torch.randn(value.shape, generator=random) * (0.5 if "mag" in name else 1.0))
            if name in ("threshold", "topk_threshold"):
                value.copy_(value.abs() + 0.5)
    return sae


def make(folder: Path, library: str, kind: str) -> Real:
    """An SAE of the library, saved as the library saves; what it computes itself."""
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "saelens": _make_saelens,
        "sparsify": _make_sparsify,
        "dictionary_learning": _make_dictionary_learning,
        "overcomplete": _make_overcomplete,
    }[library](folder, kind)


def load(folder: Path, library: str) -> Real:
    """What the library computes once it has loaded the folder."""
    return {
        "saelens": _load_saelens,
        "sparsify": _load_sparsify,
        "dictionary_learning": _load_dictionary_learning,
        "overcomplete": _load_overcomplete,
    }[library](folder)


# -- SAELens ---------------------------------------------------------------------------------------------------------


def _make_saelens(folder: Path, kind: str) -> Real:
    import sae_lens

    cls, batched = kind.split()[0], kind.endswith("batchtopk")
    config: dict[str, Any] = {"architecture": cls, "d_in": D, "d_sae": N, "dtype": "float32", "device": "cpu"}
    config["apply_b_dec_to_input"] = not kind.endswith("transcoder")
    if batched:
        config |= {"k": K, "rescale_acts_by_decoder_norm": True}
        config |= {"matryoshka_widths": [8, 16, N]} if kind.startswith("matryoshka") else {}
        randomised(sae_lens.TrainingSAE.from_dict(config)).save_inference_model(folder)
        return _load_saelens(folder)
    config |= {"k": K, "rescale_acts_by_decoder_norm": "rescaled" in kind} if cls == "topk" else {}
    config |= {"d_out": D} if kind.endswith("transcoder") else {}
    sae = randomised(sae_lens.SAE.from_dict(config))
    sae.save_model(folder)
    return _run_saelens(sae)


def _load_saelens(folder: Path) -> Real:
    import sae_lens

    return _run_saelens(sae_lens.SAE.load_from_disk(folder))


def _run_saelens(sae: Any) -> Real:
    return lambda x: (sae.encode(x), sae(x))


# -- sparsify --------------------------------------------------------------------------------------------------------


def _make_sparsify(folder: Path, kind: str) -> Real:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=N, k=K, transcode=kind == "transcoder")
    sae = randomised(SparseCoder(D, config))
    sae.save_to_disk(folder)
    return _run_sparsify(sae)


def _load_sparsify(folder: Path) -> Real:
    from sparsify import SparseCoder

    return _run_sparsify(SparseCoder.load_from_disk(folder))


def _run_sparsify(sae: Any) -> Real:
    from sparsify.utils import eager_decode

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        found = sae.encode(x)
        z = torch.zeros(len(x), N).scatter(1, found.top_indices, found.top_acts)
        # Its own decode runs on a GPU where Triton is installed.
        return z, eager_decode(found.top_indices, found.top_acts, sae.W_dec.mT) + sae.b_dec

    return run


# -- dictionary_learning ---------------------------------------------------------------------------------------------


def _make_dictionary_learning(folder: Path, kind: str) -> Real:
    from dictionary_learning import utils

    counted = {"k": K} if "TopK" in kind else {}
    grouped = {"group_sizes": [8, 8, N - 16]} if kind.startswith("Matryoshka") else {}
    sae = randomised(getattr(utils, kind)(D, N, **counted, **grouped))
    torch.save(sae.state_dict(), folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": N, **counted}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))
    return _load_dictionary_learning(folder)


def _load_dictionary_learning(folder: Path) -> Real:
    from dictionary_learning.utils import load_dictionary

    sae, _ = load_dictionary(str(folder), "cpu")
    return lambda x: (sae.encode(x), sae(x))


# -- overcomplete ----------------------------------------------------------------------------------------------------


def overcomplete_sae() -> ModuleType:
    """``overcomplete.sae`` without what the package's own module imports: torchvision and timm, for vision models,
    of which torchvision's wheel on PyPI does not load beside a CPU build of torch."""
    if "overcomplete" not in sys.modules:
        spec = importlib.util.find_spec("overcomplete")
        assert spec is not None
        sys.modules["overcomplete"] = importlib.util.module_from_spec(spec)  # made, and not executed
    return importlib.import_module("overcomplete.sae")


def _make_overcomplete(folder: Path, kind: str) -> Real:
    cls, _, option = kind.partition(" ")
    arguments: dict[str, Any] = {"input_shape": D, "nb_concepts": N}
    arguments |= {"top_k": K if cls == "TopKSAE" else 40 * K} if "TopK" in cls else {}
    if option:
        multiplied = {"use_multiplier": True}
        arguments["dictionary_params"] = multiplied if option == "multiplied" else {"normalization": option}
    sae = randomised(getattr(overcomplete_sae(), cls)(**arguments))
    if option == "multiplied":
        torch.nn.init.constant_(sae.dictionary.multiplier, 0.4)  # type: ignore[union-attr, arg-type]
    config: dict[str, Any] = {"format": "tide-overcomplete/1", "cls": cls, "arguments": arguments}
    if cls == "BatchTopKSAE":
        sae(torch.randn(40, D, generator=torch.Generator().manual_seed(5)))  # a training batch sets the threshold
        config["running_threshold"] = float(sae.running_threshold)  # type: ignore[arg-type]
    save_file(sae.state_dict(), folder / "overcomplete.safetensors")
    (folder / "overcomplete.json").write_text(json.dumps(config))
    return _load_overcomplete(folder)


def _load_overcomplete(folder: Path) -> Real:
    config = json.loads((folder / "overcomplete.json").read_text())
    sae = getattr(overcomplete_sae(), config["cls"])(**config["arguments"])
    sae.load_state_dict(load_file(folder / "overcomplete.safetensors"))
    if "running_threshold" in config:
        sae.running_threshold = torch.tensor(config["running_threshold"])
    sae.eval()
    centre = torch.tensor(config.get("centre", 0.0))

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        _, z = sae.encode(x - centre)
        return z, sae.decode(z) + centre

    return run

"""Banks on disk: one safetensors file, with the SAE, the names and the sizes in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from tide.editing.bank import Bank, Concept, Difference, SparseMeans
from tide.errors import TideError
from tide.files import check_tensors, open_tensors, parse_json, read_tensors, replace_file, tensors_writer
from tide.files.writing import Write

#: The entry of the file's metadata that describes the bank.
KEY = "tide_bank"
_REMEDY = "record the bank again"
_WHAT = "the bank"


class _Description(TypedDict):
    """Names stand here, since tensors are named by numbers: any text may name a concept."""

    sae: dict[str, Any]
    timesteps: int
    concepts: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]


def bank_writer(bank: Bank) -> Write:
    """A function that writes :func:`save_bank`'s file, for :func:`~tide.files.replace_files`."""
    tensors: dict[str, Tensor] = {"timesteps": bank.timesteps.float()}
    concepts, contrasts = [], []
    for i, (name, held) in enumerate(bank.concepts.items()):
        tensors |= {f"concepts.{i}.{part}": value for part, value in _tensors_of(held).items()}
        sizes = {"tokens": held.tokens.shape[1], "latents": held.present.values.shape[1]}
        concepts.append({"name": name, **sizes, "features": len(held.features)})
    for i, ((source, target), found) in enumerate(bank.contrasts.items()):
        tensors |= {f"contrasts.{i}.keys": found.keys, f"contrasts.{i}.values": found.values}
        contrasts.append({"source": source, "target": target, "tokens": found.keys.shape[1]})
    described: _Description = {
        "sae": dict(bank.sae),
        "timesteps": len(bank.timesteps),
        "concepts": concepts,
        "contrasts": contrasts,
    }
    return tensors_writer(tensors, {KEY: json.dumps(described)})


def save_bank(path: str | Path, bank: Bank) -> None:
    """Writes ``bank`` as one safetensors file."""
    replace_file(Path(path), bank_writer(bank))


def load_bank(path: str | Path) -> Bank:
    """The bank in ``path``.

    Raises :class:`~tide.errors.TideError` if the file does not hold a bank or is damaged. Whether it fits a pipeline
    and an SAE is :meth:`Bank.check`'s and :meth:`Bank.check_model`'s to say.
    """
    path = Path(path)
    with open_tensors(path, _WHAT) as file:
        kept = (file.metadata() or {}).get(KEY)
    if kept is None:
        raise TideError(f"{path} holds no bank; make one with `tide bank`")
    described: Any = parse_json(kept, f"{path}'s description", _Description)
    tensors = read_tensors(path, _WHAT)
    try:
        like = _like(described)
        names = [each["name"] for each in described["concepts"]]
        pairs = [(each["source"], each["target"]) for each in described["contrasts"]]
    except (KeyError, TypeError, RuntimeError):
        raise TideError(f"{path}'s description of the bank is damaged; {_REMEDY}") from None
    check_tensors(path, tensors, like, remedy=_REMEDY, any_float=True)
    concepts = {name: _concept(tensors, f"concepts.{i}.") for i, name in enumerate(names)}
    contrasts = {
        pair: Difference(tensors[f"contrasts.{i}.keys"], tensors[f"contrasts.{i}.values"])
        for i, pair in enumerate(pairs)
    }
    n = described["sae"]["n_latents"]
    for name, held in concepts.items():
        for numbers in (held.features, held.present.indices, held.absent.indices):
            if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < n:
                raise TideError(f"{path} names latents of {name!r} that an SAE of {n} does not have; {_REMEDY}")
    return Bank(described["sae"], tensors["timesteps"].float(), concepts, contrasts)


def _tensors_of(held: Concept) -> dict[str, Tensor]:
    return {
        "tokens": held.tokens,
        "mean": held.mean,
        "features": held.features.int(),
        "weights": held.weights,
        "thresholds": held.thresholds,
        "present.indices": held.present.indices,
        "present.values": held.present.values,
        "absent.indices": held.absent.indices,
        "absent.values": held.absent.values,
    }


def _concept(tensors: dict[str, Tensor], prefix: str) -> Concept:
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    means = [SparseMeans(own.pop(f"{side}.indices"), own.pop(f"{side}.values")) for side in ("present", "absent")]
    return Concept(present=means[0], absent=means[1], **own)


def _like(described: _Description) -> dict[str, Tensor]:
    """What the tensors must be like, on the meta device."""
    steps, width = described["timesteps"], described["sae"]["d_model"]

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    like = {"timesteps": empty(steps)}
    for i, each in enumerate(described["concepts"]):
        n, most, features = each["tokens"], each["latents"], each["features"]
        own = {
            "tokens": empty(steps, n, width),
            "mean": empty(steps, width),
            "features": empty(features, dtype=torch.int32),
            "weights": empty(steps, features),
            "thresholds": empty(steps),
        }
        for side in ("present", "absent"):
            own |= {f"{side}.indices": empty(steps, most, dtype=torch.int32), f"{side}.values": empty(steps, most)}
        like |= {f"concepts.{i}.{part}": value for part, value in own.items()}
    for i, each in enumerate(described["contrasts"]):
        shape = (steps, each["tokens"], width)
        like |= {f"contrasts.{i}.keys": empty(*shape), f"contrasts.{i}.values": empty(*shape)}
    return like

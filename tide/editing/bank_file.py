"""Banks on disk: one safetensors file, with the SAE, the names and the sizes in its metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

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
#: No side of a tensor is as long: more would overflow.
MOST = 2**20


class _Sae(TypedDict):
    """As :func:`~tide.editing.target_file.sae_record` makes it."""

    family: str | None
    block: int | str | None
    tensor: str
    d_model: int
    n_latents: int
    weights: str


class _Concept(TypedDict):
    name: str
    tokens: int
    latents: int
    features: int


class _Contrast(TypedDict):
    source: str
    target: str
    tokens: int


class _Description(TypedDict):
    """Names stand here, since tensors are named by numbers: any text may name a concept."""

    sae: _Sae
    timesteps: int
    concepts: list[_Concept]
    contrasts: list[_Contrast]


def bank_writer(bank: Bank) -> Write:
    """A function that writes :func:`save_bank`'s file, for :func:`~tide.files.replace_files`."""
    tensors: dict[str, Tensor] = {"timesteps": bank.timesteps.float()}
    concepts: list[_Concept] = []
    contrasts: list[_Contrast] = []
    for i, (name, held) in enumerate(bank.concepts.items()):
        tensors |= {f"concepts.{i}.{part}": value for part, value in _tensors_of(held).items()}
        n, most, features = held.tokens.shape[1], held.present.values.shape[1], len(held.features)
        concepts.append({"name": name, "tokens": n, "latents": most, "features": features})
    for i, ((source, target), found) in enumerate(bank.contrasts.items()):
        tensors |= {f"contrasts.{i}.keys": found.keys, f"contrasts.{i}.values": found.values}
        contrasts.append({"source": source, "target": target, "tokens": found.keys.shape[1]})
    described = {
        "sae": dict(bank.sae),
        "timesteps": len(bank.timesteps),
        "concepts": concepts,
        "contrasts": contrasts,
    }
    return tensors_writer(tensors, {KEY: json.dumps(described)})


def save_bank(path: str | Path, bank: Bank) -> None:
    """Writes ``bank`` as one safetensors file.

    ``path`` is the file, which is replaced in one step.
    """
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
    described: _Description = parse_json(kept, f"{path}'s description", _Description)
    names = [each["name"] for each in described["concepts"]]
    pairs = [(each["source"], each["target"]) for each in described["contrasts"]]
    if len(set(names)) < len(names) or len(set(pairs)) < len(pairs):
        raise TideError(f"{path} holds a concept or a contrast twice; {_REMEDY}")
    _check_sizes(path, described)
    tensors = read_tensors(path, _WHAT)
    check_tensors(path, tensors, _like(described), remedy=_REMEDY, any_float=True)
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
    return Bank(dict(described["sae"]), tensors["timesteps"].float(), concepts, contrasts)


def _check_sizes(path: Path, described: _Description) -> None:
    sizes = [described["timesteps"], described["sae"]["d_model"], described["sae"]["n_latents"]]
    for concept in described["concepts"]:
        sizes += [concept["tokens"], concept["latents"], concept["features"]]
    sizes += [contrast["tokens"] for contrast in described["contrasts"]]
    if not all(1 <= size < MOST for size in sizes):
        raise TideError(f"{path} describes tensors of impossible sizes; {_REMEDY}")


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
    for i, pair in enumerate(described["contrasts"]):
        shape = (steps, pair["tokens"], width)
        like |= {f"contrasts.{i}.keys": empty(*shape), f"contrasts.{i}.values": empty(*shape)}
    return like

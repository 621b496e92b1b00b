"""A TIDE on disk: a folder with ``config.json`` and ``model.safetensors``, each replaced atomically."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from tide.errors import TideError
from tide.files import (
    Write,
    check_tensors,
    json_writer,
    open_tensors,
    read_json,
    read_tensors,
    tensors_writer,
)
from tide.files.schema import check_schema
from tide.images.trained import TrainedOn
from tide.provenance import first_difference, versions
from tide.sae.config import TIDEConfig
from tide.sae.modulation import ModulationConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "tide-sae/1"
#: The tensor of :meth:`tide.images.trained.TrainedOn.digests`, and the entry of the config beside it.
TRAINED_ON = "trained_on"
_MIXED = "config.json and model.safetensors are of different checkpoints, or damaged"


def checkpoint_files(
    config: TIDEConfig, tensors: Mapping[str, Tensor], path: Path, trained_on: TrainedOn | None = None
) -> dict[Path, Write]:
    """The files of a checkpoint in the folder ``path``, for :func:`tide.files.replace_files`."""
    described = {"format": FORMAT, **asdict(config), "versions": versions()}
    if trained_on is not None:
        described[TRAINED_ON] = trained_on.recorded()
        tensors = {**tensors, TRAINED_ON: trained_on.digests()}
    return {path / WEIGHTS: tensors_writer(tensors), path / CONFIG: json_writer(described)}


def load_config(path: Path, **expected: Any) -> TIDEConfig:
    """The config of a checkpoint, checked against ``expected`` fields; None, on either side, fits anything.

    Raises :class:`~tide.errors.TideError` for a missing or damaged file, and for a checkpoint trained on another width,
    block, tensor or model family. Raises ``TypeError`` for a field that there is not.
    """
    known = {f.name for f in fields(TIDEConfig)}
    if unknown := sorted(expected.keys() - known):
        raise TypeError(f"a checkpoint has no field {unknown[0]!r} to check; known: {', '.join(sorted(known))}")
    raw = read_config(path)
    asked = {name: value for name, value in expected.items() if value is not None and raw.get(name) is not None}
    if found := first_difference({name: raw[name] for name in asked}, asked):
        name, before, now = found
        raise TideError(f"{path} was trained on {name} {before!r}, not {now!r}; use a checkpoint made for this {name}")
    given = {name: value for name, value in raw.items() if name in known}
    modulation = ModulationConfig(**raw["modulation"]) if raw.get("modulation") else None
    prefixes = tuple(raw.get("prefixes", ()))
    config = TIDEConfig(**{**given, "modulation": modulation, "prefixes": prefixes})
    _check_sizes(path / WEIGHTS, config)
    return config


def load_weights(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, for a model whose own are ``like``.

    Raises :class:`~tide.errors.TideError` for a missing, truncated or pickled file, and for tensors that are missing,
    surplus, misshaped, mistyped or not finite.
    """
    weights = path / WEIGHTS
    tensors = read_tensors(weights, "the checkpoint")
    tensors.pop(TRAINED_ON, None)
    check_tensors(weights, tensors, like, remedy=_MIXED, any_float=True)
    if (stored := tensors.get("activation.threshold")) is not None and bool((stored < 0).any()):
        raise TideError(f"{weights}: activation.threshold is {float(stored.min()):g} and must be at least 0; {_MIXED}")
    for name in ("activation_scale", "target_scale"):
        if name in tensors and not (scale := float(tensors[name])) > 0:
            raise TideError(f"{weights}: {name} is {scale:g} and must be positive; {_MIXED}")
    return tensors


def load_trained_on(path: Path) -> TrainedOn | None:
    """The images that trained a checkpoint, as far as it records them; reads no weights."""
    recorded = read_config(path).get(TRAINED_ON)
    with open_tensors(path / WEIGHTS, "the checkpoint") as file:
        digests = file.get_tensor(TRAINED_ON) if TRAINED_ON in file.keys() else None
    return None if recorded is None and digests is None else TrainedOn.read(recorded, digests, str(path))


def read_config(path: Path) -> dict[str, Any]:
    """The config of the checkpoint in the folder ``path``, every field of its type."""
    raw = read_json(path / CONFIG)
    if not _is_tide(raw):
        raise TideError(
            f"{path / CONFIG} is not the config of a TIDE checkpoint; give the folder that `tide train` wrote"
        )
    check_schema(raw, TIDEConfig, str(path / CONFIG))
    if raw.get("modulation") and (unknown := raw["modulation"].keys() - {f.name for f in fields(ModulationConfig)}):
        raise TideError(f"{path / CONFIG}: modulation.{min(unknown)} is unknown; a newer version may have written it")
    return raw


def is_tide(path: Path) -> bool:
    """Whether ``config.json`` in the folder ``path`` says that it is a TIDE checkpoint's, whole or not.

    Raises :class:`~tide.errors.TideError` for a file that is no JSON.
    """
    return _is_tide(read_json(path / CONFIG))


def _is_tide(raw: Any) -> bool:
    return isinstance(raw, dict) and raw.get("format") == FORMAT


def _check_sizes(weights: Path, config: TIDEConfig) -> None:
    """Checks, from the file's header, that it holds tensors of the config's sizes: a model of these sizes is built
    next, and a false config must not ask for more memory than there is."""
    wanted = {name: (config.n_latents, config.d_model) for name in ("W_enc", "W_dec")}
    if (own := config.modulation) is not None:
        rows, hidden = (own.has_scale + own.has_shift) * own.d_model, own.d_hidden or own.d_embedding
        wanted["modulation.linear.weight"] = (rows, own.d_embedding)
        if own.n_frequencies:
            wanted |= {
                "modulation.linear_1.weight": (hidden, own.n_frequencies),
                "modulation.linear_2.weight": (own.d_embedding, hidden),
            }
    with open_tensors(weights, "the checkpoint") as file:
        names = set(file.keys())
        for name, shape in wanted.items():
            if name not in names:
                raise TideError(f"{weights} lacks {name}; {_MIXED}")
            if (found := file.get_slice(name).get_shape()) != list(shape):
                raise TideError(f"{weights}: {name} has shape {found}, the config asks for {list(shape)}; {_MIXED}")

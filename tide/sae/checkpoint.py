"""A TIDE on disk: a folder with ``config.json`` and ``model.safetensors``; each file replaced in one step."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files import (
    Write,
    check_tensors,
    json_writer,
    open_tensors,
    read_json,
    read_tensors,
    replace_files,
    tensors_writer,
)
from tide.files.schema import check_schema
from tide.provenance import versions
from tide.sae.model import TIDE, TIDEConfig
from tide.sae.modulation import ModulationConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FORMAT = "tide-sae/1"
_MIXED = "config.json and model.safetensors are of different checkpoints, or damaged"


def save(model: TIDE, path: Path) -> None:
    """Writes both files of the checkpoint; if one cannot be written, both stay as they were."""
    replace_files(checkpoint_files(model, path))


def checkpoint_files(model: TIDE, path: Path) -> dict[Path, Write]:
    """What :func:`save` writes, for whoever writes more in the same step."""
    config = {"format": FORMAT, **asdict(model.config), "versions": versions()}
    return {path / WEIGHTS: tensors_writer(model.state_dict()), path / CONFIG: json_writer(config)}


def load(path: Path, *, backend: str = "auto", **expected: Any) -> TIDE:
    """Reads a checkpoint and checks it against ``expected`` fields of its config; None, on either side, fits anything.

    Raises :class:`~tide.errors.TideError` for a missing, truncated or pickled file, for tensors that are missing,
    surplus, misshaped, mistyped or not finite, and for a checkpoint trained on another width, block, tensor or model
    family.
    """
    known = {f.name for f in fields(TIDEConfig)}
    if unknown := sorted(expected.keys() - known):
        raise TideError(f"a checkpoint has no field {unknown[0]!r} to check; known: {', '.join(sorted(known))}")
    raw = read_config(path)
    for name, value in expected.items():
        if value is not None and raw.get(name) is not None and raw[name] != value:
            raise TideError(
                f"{path} was trained on {name} {raw[name]!r}, not {value!r}; use a checkpoint made for this {name}"
            )
    config = TIDEConfig(
        **{
            **{name: value for name, value in raw.items() if name in known},
            "modulation": ModulationConfig(**raw["modulation"]) if raw.get("modulation") else None,
        }
    )
    weights = path / WEIGHTS
    _check_sizes(weights, config)
    model = TIDE(config, backend=backend)
    tensors = read_tensors(weights, "the checkpoint")
    check_tensors(weights, tensors, model.state_dict(), remedy=_MIXED, any_float=True)
    model.load_state_dict(tensors)
    if not model.activation_scale > 0:
        raise TideError(
            f"{weights}: activation_scale is {float(model.activation_scale):g} and must be positive; {_MIXED}"
        )
    return model.eval()


def read_config(path: Path) -> dict[str, Any]:
    """The config of the checkpoint in the folder ``path``, every field of its type."""
    raw = read_json(path / CONFIG)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise TideError(
            f"{path / CONFIG} is not the config of a TIDE checkpoint; give the folder that `tide train` wrote"
        )
    check_schema(raw, TIDEConfig, str(path / CONFIG))
    if raw.get("modulation") and (unknown := raw["modulation"].keys() - {f.name for f in fields(ModulationConfig)}):
        raise TideError(f"{path / CONFIG}: modulation.{min(unknown)} is unknown; a newer version may have written it")
    return raw


def _check_sizes(weights: Path, config: TIDEConfig) -> None:
    """That the file holds tensors of the config's sizes, read from its header: a model is built of them next, and a
    config that lies must not ask for more memory than there is."""
    wanted = {name: (config.n_latents, config.d_model) for name in ("W_enc", "W_dec")}
    if (own := config.modulation) is not None:
        rows = (own.has_scale + own.has_shift) * own.d_model
        wanted |= {
            "modulation.linear_1.weight": (own.d_embedding, own.n_frequencies),
            "modulation.linear_2.weight": (own.d_embedding, own.d_embedding),
            "modulation.linear.weight": (rows, own.d_embedding),
        }
    with open_tensors(weights, "the checkpoint") as file:
        names = set(file.keys())
        for name, shape in wanted.items():
            if name not in names:
                raise TideError(f"{weights} lacks {name}; {_MIXED}")
            if (found := file.get_slice(name).get_shape()) != list(shape):
                raise TideError(f"{weights}: {name} has shape {found}, the config asks for {list(shape)}; {_MIXED}")

"""A TIDE on disk: a folder with ``config.json`` and ``model.safetensors``; each file replaced in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tide.errors import TideError
from tide.sae.model import TIDE, TIDEConfig
from tide.sae.modulation import ModulationConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls ``write`` on a temporary name beside ``path`` and renames it: what was there stays until the new file
    is whole. A full disk is a one-line error and leaves nothing half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise TideError(f"{path} could not be written ({error}); free some space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: object) -> None:
    text = json.dumps(data, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise TideError(f"{path} does not exist; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TideError(f"{path} is not valid JSON ({error}); it may be truncated, make it anew") from None


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on."""
    found = {"torch": torch.__version__}
    for name in ("tide-sae", "diffusers", "transformers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def save(model: TIDE, path: Path) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    replace_file(path / WEIGHTS, lambda temporary: save_file(tensors, temporary))
    write_json(path / CONFIG, {"format": "tide-sae/1", **asdict(model.config), "versions": versions()})


def load(path: Path, *, backend: str = "auto", **expected: Any) -> TIDE:
    """Reads a checkpoint and checks it against ``expected`` config fields.

    Raises :class:`~tide.errors.TideError` for a missing, truncated or pickled file, missing or misshaped tensors,
    and a checkpoint trained on another width, block, tensor or model family.
    """
    raw = read_json(path / CONFIG)
    if not isinstance(raw, dict) or raw.get("format") != "tide-sae/1":
        raise TideError(f"{path / CONFIG} is not the config of a TIDE checkpoint; give the folder that `tide train` wrote")
    for name, value in expected.items():
        if value is not None and raw.get(name) is not None and raw[name] != value:
            raise TideError(
                f"{path} was trained on {name} {raw[name]!r}, not {value!r}; use a checkpoint made for this {name}"
            )
    known = {f.name for f in fields(TIDEConfig)}
    try:
        config = TIDEConfig(
            **{
                **{name: value for name, value in raw.items() if name in known},
                "modulation": ModulationConfig(**raw["modulation"]) if raw.get("modulation") else None,
            }
        )
    except (TypeError, KeyError) as error:
        raise TideError(f"{path / CONFIG} lacks or mistypes a field ({error}); make the checkpoint anew") from None
    tensors = load_tensors(path / WEIGHTS)
    model = TIDE(config, backend=backend)
    own = model.state_dict()
    if missing := sorted(own.keys() - tensors.keys()):
        raise TideError(f"{path / WEIGHTS} lacks {', '.join(missing)}; it belongs to another config, make it anew")
    for name, value in own.items():
        if tensors[name].shape != value.shape:
            raise TideError(
                f"{path / WEIGHTS}: {name} has shape {list(tensors[name].shape)}, the config asks for "
                f"{list(value.shape)}; config.json and model.safetensors are of different checkpoints"
            )
    model.load_state_dict({name: tensors[name] for name in own})
    return model.eval()


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, with one-line errors for what is not one."""
    if not path.is_file():
        raise TideError(f"{path} does not exist; the checkpoint is incomplete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            start = file.read(2)
        kind = "a pickle, which is never loaded" if start[:1] == b"\x80" or start == b"PK" else "truncated or foreign"
        raise TideError(f"{path} is not a readable safetensors file ({kind}: {error}); make it anew") from None

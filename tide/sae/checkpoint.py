"""A TIDE on disk: a folder with ``config.json`` and ``model.safetensors``; each file replaced in one step."""

from __future__ import annotations

import json
import os
import platform
import re
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
FORMAT = "tide-sae/1"


Write = Callable[[Path], Any]


def replace_files(files: dict[Path, Write]) -> None:
    """Has every file written under a temporary name beside it, then renames them all.

    What was there stays until every new file is whole. A full disk is a one-line error and leaves nothing
    half-written.
    """
    written: dict[Path, Path] = {}
    path = next(iter(files))
    try:
        for path, write in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            write(written[path])
        for path, temporary in written.items():
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise TideError(f"{path} could not be written ({error}); free some space or choose another folder") from error
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def replace_file(path: Path, write: Write) -> None:
    """:func:`replace_files` of one file."""
    replace_files({path: write})


def json_writer(data: object) -> Write:
    """What writes ``data`` to the path that :func:`replace_files` gives it."""
    text = json.dumps(data, indent=2) + "\n"
    return lambda path: path.write_text(text)


def write_json(path: Path, data: object) -> None:
    """Writes ``data``, replacing the file in one step."""
    replace_file(path, json_writer(data))


def read_json(path: Path) -> Any:
    """What a JSON file holds; a missing, unreadable or truncated one is a one-line error."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise TideError(f"{path} does not exist; check the path") from None
    except OSError as error:
        raise TideError(f"{path} cannot be read ({error}); check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TideError(f"{path} is not valid JSON ({error}); it may be truncated, make it anew") from None


def versions() -> dict[str, str]:
    """Versions of this package and of what its results depend on."""
    found = {"torch": str(torch.__version__)}
    for name in ("tide-sae", "diffusers", "transformers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    """The processor's name, which :mod:`platform` does not know on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def save(model: TIDE, path: Path) -> None:
    """Writes both files of the checkpoint; if one cannot be written, both stay as they were."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    config = {"format": FORMAT, **asdict(model.config), "versions": versions()}
    replace_files({path / WEIGHTS: lambda temporary: save_file(tensors, temporary), path / CONFIG: json_writer(config)})


def load(path: Path, *, backend: str = "auto", **expected: Any) -> TIDE:
    """Reads a checkpoint and checks it against ``expected`` fields of its config; None, on either side, fits anything.

    Raises :class:`~tide.errors.TideError` for a missing, truncated or pickled file, for missing, misshaped or
    surplus tensors, and for a checkpoint trained on another width, block, tensor or model family.
    """
    known = {f.name for f in fields(TIDEConfig)}
    if unknown := sorted(expected.keys() - known):
        raise TideError(f"a checkpoint has no field {unknown[0]!r} to check; known: {', '.join(sorted(known))}")
    raw = read_json(path / CONFIG)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise TideError(
            f"{path / CONFIG} is not the config of a TIDE checkpoint; give the folder that `tide train` wrote"
        )
    for name, value in expected.items():
        if value is not None and raw.get(name) is not None and raw[name] != value:
            raise TideError(
                f"{path} was trained on {name} {raw[name]!r}, not {value!r}; use a checkpoint made for this {name}"
            )
    try:
        config = TIDEConfig(
            **{
                **{name: value for name, value in raw.items() if name in known},
                "modulation": ModulationConfig(**raw["modulation"]) if raw.get("modulation") else None,
            }
        )
        model = TIDE(config, backend=backend)
    except TypeError as error:
        reason = " ".join(str(error).split())  # torch spreads its own over several lines
        raise TideError(f"{path / CONFIG} lacks or mistypes a field ({reason}); make the checkpoint anew") from None
    tensors = load_tensors(path / WEIGHTS)
    own = model.state_dict()
    if missing := sorted(own.keys() - tensors.keys()):
        raise TideError(f"{path / WEIGHTS} lacks {', '.join(missing)}; it belongs to another config, make it anew")
    if surplus := sorted(tensors.keys() - own.keys()):
        raise TideError(
            f"{path / WEIGHTS} holds {', '.join(surplus)}, which the config knows nothing of; "
            "config.json and model.safetensors are of different checkpoints"
        )
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
        raise TideError(
            f"{path} is not a readable safetensors file ({what_is_wrong(path)}: {error}); make it anew"
        ) from None


def what_is_wrong(path: Path) -> str:
    """Why a file is no safetensors file: it is a pickle (bare, or torch.save's zip), or truncated or foreign."""
    with path.open("rb") as file:
        start = file.read(8)
    # A safetensors file starts with the length of its header, whose first byte may be 0x80 too; its last ones are 0.
    bare = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[3:8] != bytes(5)
    return "a pickle, which is never loaded" if bare or start[:2] == b"PK" else "truncated or foreign"

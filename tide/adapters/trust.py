"""What is not taken on trust: code and pickled weights in a pipeline's folder."""

from __future__ import annotations

from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tide.adapters.registry import own_class
from tide.errors import TideError
from tide.files import read_json

#: The option that allows the first kind, with which it must be asked for.
OPTION = "--trust-remote-code"
#: Keys of a component's configuration that name code of its own.
_CODE_KEYS = ("auto_map", "trust_remote_code")


def check_folder(folder: Path, *, trust: bool, left_out: Container[str] = ()) -> None:
    """Raises :class:`~tide.errors.TideError` if loading the pipeline in ``folder`` would run code that comes with it,
    unless ``trust``, or would read pickled weights. Components ``left_out`` are not loaded and not looked at.
    Modules that registered an adapter (:func:`~tide.adapters.registry.own_class`) run already."""
    index = read_json(folder / "model_index.json")
    if not isinstance(index, dict):
        return  # loading says what is wrong
    parts = {name: value for name, value in index.items() if is_part(name, value) and name not in left_out}
    if not trust:
        name = index.get("_class_name")
        if isinstance(name, list) and name:
            _refuse(folder / f"{name[0]}.py", "code of its own for the pipeline")
        for name, value in parts.items():
            _check_part(folder, name, value)
    for name in parts:
        _check_weights(place_of(folder, name))


def is_part(name: str, value: Any) -> bool:
    """Whether an entry of model_index.json is a component that is loaded."""
    named = name.isidentifier() and not name.startswith("_")
    return named and isinstance(value, list) and value[:1] not in ([], [None])


def place_of(folder: Path, name: str) -> Path:
    """Where a component's files are: its own folder or, without one, the pipeline's."""
    return folder / name if (folder / name).is_dir() else folder


def _check_part(folder: Path, name: str, value: list[Any]) -> None:
    library = str(value[0])
    if (code := folder / name / f"{library}.py").exists():
        _refuse(code, f"code of its own for {name}")
    if not is_known(library) and own_class(str(value[-1])) is None:
        where = "which is not of diffusers (a module of your own is named by --adapter)"
        _refuse(folder / "model_index.json", f"the module {library!r} for {name}, {where}")
    for file in sorted(place_of(folder, name).glob("*.json")):
        config = read_json(file)
        named = [key for key in _CODE_KEYS if isinstance(config, dict) and config.get(key)]
        if named:
            _refuse(file, f"code of its own ({named[0]}) for {name}")


def is_known(library: str) -> bool:
    """Whether a component's library is diffusers, transformers or a folder of diffusers' pipelines."""
    if library in ("diffusers", "transformers"):
        return True
    return library.isidentifier() and find_spec(f"diffusers.pipelines.{library}") is not None


def _refuse(file: Path, what: str) -> None:
    raise TideError(f"{file} brings {what}; read it, and add {OPTION} to run it")


def _check_weights(folder: Path) -> None:
    pickled = [*sorted(folder.glob("*pytorch_model*.bin")), *sorted(folder.glob("*.ckpt"))]
    if pickled and not any(folder.glob("*.safetensors")):
        raise TideError(f"{pickled[0]} is pickled, which can run code when it is read; save the weights as safetensors")

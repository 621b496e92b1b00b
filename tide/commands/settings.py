"""The training configuration from a YAML file and ``--set key=value``, every value checked against its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from tide.errors import TideError
from tide.training.config import TrainConfig


def train_config(file: str | Path | None, assignments: Sequence[str], options: dict[str, Any]) -> TrainConfig:
    """Defaults, then the YAML ``file``, then ``assignments`` (``loss.temporal=1e-3``), then ``options`` not None."""
    raw = TrainConfig().to_dict() if file is None else _read(file)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise TideError(f"--set {assignment} is no assignment; write it as --set loss.temporal=1e-3")
        _assign(raw, key, text)
    raw |= {name: value for name, value in options.items() if value is not None}
    return TrainConfig.from_dict(_checked(TrainConfig, raw))


def _read(file: str | Path) -> dict[str, Any]:
    try:
        return TrainConfig.from_yaml(file).to_dict()
    except TypeError as error:
        raise TideError(f"{file} holds a value of a wrong type ({error}); correct it") from None


def _assign(raw: dict[str, Any], key: str, text: str) -> None:
    *parents, name = key.split(".")
    at: Any = raw
    for parent in parents:
        at = at.get(parent) if isinstance(at, dict) else None
    if not isinstance(at, dict) or name not in at:
        known = ", ".join(_keys(raw))
        raise TideError(f"--set {key} is no option of the training configuration; known: {known}")
    if isinstance(at[name], dict):
        raise TideError(f"--set {key} names a group; set one of {', '.join(f'{key}.{each}' for each in at[name])}")
    try:
        at[name] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise TideError(f"--set {key}={text} could not be read; write a number, a word or a list") from None


def _keys(raw: dict[str, Any]) -> list[str]:
    nested = [[f"{key}.{each}" for each in value] if isinstance(value, dict) else [key] for key, value in raw.items()]
    return [key for keys in nested for key in keys]


def _checked(cls: type, raw: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    hints = get_type_hints(cls)
    out = {}
    for name, value in raw.items():
        kind = hints[name]
        nested = dataclasses.is_dataclass(kind) and isinstance(value, dict)
        out[name] = _checked(kind, value, f"{name}.") if nested else _value(prefix + name, kind, value)
    return out


def _value(name: str, kind: Any, value: Any) -> Any:
    """``value`` as ``kind``. YAML reads 1e-3 as a word, so a word that is a number counts as one."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        value = "off" if value is False and "off" in choices else value  # YAML reads off as false
        if value not in choices:
            raise TideError(f"{name} = {value!r} is unknown; use one of {', '.join(choices)}")
        return value
    if NoneType in get_args(kind):
        return None if value is None else _value(name, get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(kind)):
            raise TideError(f"{name} = {value!r} must be {len(get_args(kind))} numbers, as in [0.9, 0.99]")
        return tuple(_value(name, each, part) for each, part in zip(get_args(kind), value, strict=True))
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif type(value) is kind:
        return value
    wanted = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}.get(kind, str(kind))
    raise TideError(f"{name} = {value!r} must be {wanted}")

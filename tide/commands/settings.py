"""The training configuration from a YAML file and ``--set key=value``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tide.errors import TideError
from tide.files.reading import parse_yaml
from tide.training.config import TrainConfig


def train_config(file: str | Path | None, assignments: Sequence[str], options: dict[str, Any]) -> TrainConfig:
    """Defaults, then the YAML ``file``, then ``assignments`` (``loss.temporal=1e-3``), then ``options`` not None."""
    raw = (TrainConfig() if file is None else TrainConfig.from_yaml(file)).to_dict()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise TideError(f"--set {assignment} is no assignment; write it as --set loss.temporal=1e-3")
        _assign(raw, key, text)
    raw |= {name: value for name, value in options.items() if value is not None}
    return TrainConfig.from_dict(raw)


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
        at[name] = parse_yaml(text)
    except TideError:
        raise TideError(f"--set {key}={text} could not be read; write a number, a word or a list") from None


def _keys(raw: dict[str, Any]) -> list[str]:
    nested = [[f"{key}.{each}" for each in value] if isinstance(value, dict) else [key] for key, value in raw.items()]
    return [key for keys in nested for key in keys]

"""The training configuration from a YAML file and ``--set key=value``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tide.cli.values import MOST, MOST_SEED
from tide.devices import device_of
from tide.errors import TideError
from tide.files import read_yaml
from tide.files.reading import parse_yaml
from tide.training.config import TrainConfig, former_defaults
from tide.training.idle_options import idle_options


def train_config(
    file: str | Path | None,
    assignments: Sequence[str],
    options: Mapping[str, Any] | None = None,
    *,
    plain: bool = False,
) -> TrainConfig:
    """Defaults, then the YAML ``file``, then ``assignments`` (``loss.temporal=1e-3``), then ``options`` not None, then
    no modulation if ``plain``. Where none of them names a device, it is the GPU if there is one.

    Raises :class:`~tide.errors.TideError` for what is given and has no effect: an assignment whatever its value, an
    entry of the file unless it is the default, or was one, since a file may list everything.
    """
    defaults, former = (dict(_entries(each)) for each in (TrainConfig().to_dict(), former_defaults()))
    said = {} if file is None else dict(_entries(read_yaml(Path(file))))
    base = TrainConfig() if file is None else TrainConfig.from_yaml(file)
    own = (name for name, value in said.items() if value not in (defaults.get(name), former.get(name)))
    given = {name: f"{name} of {file}" for name in own}
    values = assigned(assignments)
    given |= {key: f"--set {key}" for key in values}
    given_options = {name: value for name, value in (options or {}).items() if value is not None}
    if twice := sorted(given_options.keys() & {key for key, flag in given.items() if flag == f"--set {key}"}):
        flag = "--" + twice[0].replace("_", "-")
        raise TideError(f"--set {twice[0]} is not used with {flag}; leave one of them off")
    if plain and values.get("modulation", base.modulation) and "modulation" in given:
        raise TideError(f"{given['modulation']} is not used with --sae; leave one of them off")
    config = base.changed(values | given_options | ({"modulation": False} if plain else {}))
    _check_numbers(config)
    for name, reason in idle_options(config):
        if name in given:
            raise TideError(f"{given[name]} is not used {reason}; leave it off")
    named = "device" in said or "device" in given or "device" in given_options
    return replace(config, device=str(device_of(config.device if named else None)))


def _check_numbers(config: TrainConfig) -> None:
    """Raises for numbers that cannot be a count or a seed."""
    for name, value in _entries(config.to_dict()):
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, float) and not math.isfinite(each):
                raise TideError(f"{name} = {each} is not finite; give a number that is")
            most = MOST_SEED if name == "seed" else 10**12 if name == "revival.after_tokens" else MOST
            if isinstance(each, int) and abs(each) > most:
                raise TideError(f"{name} = {str(each)[:40]} is too large; give at most {most}")
    if config.seed < 0:
        raise TideError(f"seed = {config.seed} is negative; give at least 0")


def each_assignment(groups: Sequence[Sequence[str]]) -> list[str]:
    """The assignments of every ``--set``."""
    if any(not group for group in groups):
        raise TideError("--set has no value; give it one or leave it off")
    return [each for group in groups for each in group]


def study_options(groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What ``--set`` gives to the trainings of a study: values by the options' full names."""
    values = assigned(each_assignment(groups))
    config = TrainConfig().changed(values)
    _check_numbers(config)
    read = dict(_entries(config.to_dict()))
    return {name: read[name] for name in values}


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """The values that ``key=value`` texts give to options, by the options' full names."""
    options = TrainConfig().to_dict()
    known = dict(_entries(options))
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise TideError(f"--set {assignment} is not an assignment; write it as --set loss.temporal=1e-3")
        if isinstance(group := options.get(key), dict):
            raise TideError(f"--set {key} names a group; set one of {', '.join(f'{key}.{each}' for each in group)}")
        if key not in known:
            raise TideError(f"--set {key} is not an option of the training configuration; known: {', '.join(known)}")
        try:
            values[key] = parse_yaml(text)
        except TideError:
            raise TideError(f"--set {key}={text} could not be read; write a number, a word or a list") from None
    return values


def _entries(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every option by its full name, such as ``loss.temporal``."""
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield key, value

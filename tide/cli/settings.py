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
from tide.sae.activation import TIMED
from tide.training.config import TrainConfig


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
    entry of the file unless it is the default, since a file may list everything.
    """
    defaults = TrainConfig().to_dict()
    said = {} if file is None else dict(_entries(read_yaml(Path(file))))
    raw = (TrainConfig() if file is None else TrainConfig.from_yaml(file)).to_dict()
    given = {name: f"{name} of {file}" for name, value in said.items() if value != dict(_entries(defaults)).get(name)}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise TideError(f"--set {assignment} is not an assignment; write it as --set loss.temporal=1e-3")
        _assign(raw, key, text)
        given[key] = f"--set {key}"
    given_options = {name: value for name, value in (options or {}).items() if value is not None}
    if twice := sorted(given_options.keys() & {key for key, flag in given.items() if flag == f"--set {key}"}):
        raise TideError(f"--set {twice[0]} is not used with --{twice[0]}; leave one of them off")
    if plain and raw["modulation"] and "modulation" in given:
        raise TideError(f"{given['modulation']} is not used with --sae; leave one of them off")
    config = TrainConfig.from_dict(raw | given_options | ({"modulation": False} if plain else {}))
    _check_numbers(config)
    for name, reason in _without_effect(config):
        if name in given:
            raise TideError(f"{given[name]} is not used {reason}; leave it off")
    named = "device" in said or "device" in given or "device" in given_options
    return replace(config, device=str(device_of(config.device if named else None)))


def _without_effect(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Options that have no effect given the others, and why."""
    if not config.modulation:
        for name in ("init", "chunk", "trainable", "lr"):
            yield f"modulation_{name}", "without modulation"
        yield "pre_norm", "without modulation"
        yield "undo", "without modulation"
        yield "timestep_thresholds", "without modulation"
    if config.modulation_init != "adaln":
        yield "modulation_chunk", f"with modulation_init = {config.modulation_init}"
    if not config.modulation_trainable:
        yield "modulation_lr", "with modulation_trainable = false"
    if config.activation != "jumprelu" and not config.timestep_thresholds:
        yield "bandwidth", f"with activation = {config.activation}"
    if config.activation not in TIMED:
        yield "timestep_thresholds", f"with activation = {config.activation}"
    if config.activation not in ("relu", "gated"):
        yield "match_l0", f"with activation = {config.activation}"
    if config.n_latents is not None:
        yield "expansion", "with n_latents"
    if config.k is not None:
        yield "density", "with k"
    if config.progressive_k.shape == "off":
        yield "progressive_k.start", "with progressive_k.shape = off"
        yield "progressive_k.length", "with progressive_k.shape = off"
    yield from _losses_without_effect(config)


def _losses_without_effect(config: TrainConfig) -> Iterator[tuple[str, str]]:
    if config.loss.sparsity == 0:
        yield "loss.s_target", "with loss.sparsity = 0"
        yield "loss.delta", "with loss.sparsity = 0"
    if config.activation not in ("topk", "batch_topk"):
        yield "loss.s_target", f"with activation = {config.activation}"
        yield "loss.delta", f"with activation = {config.activation}"
    if config.loss.auxk == 0:
        yield "loss.k_aux", "with loss.auxk = 0"
        if config.revival.every == 0:
            yield "revival.after_tokens", "with revival.every = 0 and loss.auxk = 0"


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


def _assign(raw: dict[str, Any], key: str, text: str) -> None:
    *parents, name = key.split(".")
    at: Any = raw
    for parent in parents:
        at = at.get(parent) if isinstance(at, dict) else None
    if not isinstance(at, dict) or name not in at:
        known = ", ".join(key for key, _ in _entries(raw))
        raise TideError(f"--set {key} is not an option of the training configuration; known: {known}")
    if isinstance(at[name], dict):
        raise TideError(f"--set {key} names a group; set one of {', '.join(f'{key}.{each}' for each in at[name])}")
    try:
        at[name] = parse_yaml(text)
    except TideError:
        raise TideError(f"--set {key}={text} could not be read; write a number, a word or a list") from None


def _entries(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every option by its full name, such as ``loss.temporal``."""
    for key, value in raw.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield key, value

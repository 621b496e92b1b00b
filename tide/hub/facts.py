"""What a card says of a checkpoint, read from the files of its run and of what was measured of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tide.files import read_json
from tide.hub.cards import Card, Measured
from tide.hub.download import CONFIG
from tide.hub.names import Repository
from tide.hub.paths import without_paths
from tide.hub.shared import checkpoints
from tide.runs import Contents, contents, read_run

#: What ``config.json`` says of checkpoints that are older than a field of it.
_OLDER = {"family": None, "pipeline": None, "block": None, "tensor": "output", "activation": "topk", "modulation": None}
#: Options of a training that a card leaves out: they say how it ran, not what came of it.
_RUNNING = ("device", "backend", "log_every", "checkpoint_every", "shard_latents")


def card_of(
    folder: Path,
    repository: Repository,
    *,
    results: Sequence[Path] = (),
    pictures: Mapping[str, str] | None = None,
    license: str | None = None,
) -> Card:
    """The card of a checkpoint, or of a set of them.

    Args:
        folder: what the training wrote.
        repository: where it is going to be.
        results: folders of commands that measured it, whose figures the card has.
        pictures: path in the repository's folder -> what it shows.
        license: of the weights.

    Raises :class:`~tide.errors.TideError` for files that are damaged.
    """
    found = checkpoints(folder)
    configs = {name: _OLDER | without_paths(read_json(path / CONFIG, dict[str, Any])) for name, path in found.items()}
    holds, run = contents(folder) or Contents(kind="autoencoder"), read_run(folder) or {}
    first: dict[str, Any] = next(iter(configs.values()))
    own = [_by_training(name, path, command_line(run)) for name, path in found.items()]
    return Card(
        repository=repository,
        configs=configs,
        trained_on=_images(first, holds),
        training=_options(holds.configuration),
        measured=[each for each in (*own, *map(_measured, results)) if each.figures],
        pictures=pictures or {},
        license=license,
        made_with=dict(first.get("versions", {})),
    )


def _by_training(name: str, folder: Path, command: str | None) -> Measured:
    """What the training of one checkpoint measured of it; ``name`` is its block's folder in a set."""
    holds = contents(folder)
    what = f"{name.replace('-', ' ')} at the end of the training" if name else "at the end of the training"
    figures = {} if holds is None else holds.measured
    return Measured(what, command, figures, "training tokens, none of them held out")


def _measured(folder: Path) -> Measured:
    holds = contents(folder) or Contents(kind="evaluation")
    images = holds.data.get("images")
    on = None if images is None else f"{images} images of {without_paths(holds.data.get('name', 'unnamed data'))}"
    return Measured(holds.kind, command_line(read_run(folder) or {}), _flat(holds.measured), on)


def command_line(run: Mapping[str, Any]) -> str | None:
    """The command that made a folder, with the options of its ``run.json``; None for a call from Python."""
    if not run.get("command"):
        return None
    words = ["tide", str(run["command"])]
    for name, value in without_paths(run.get("arguments", {})).items():
        if value is None or value is False or value == []:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += [str(each) for each in _rows(value)]
    return shlex.join(words)


def _rows(value: Any) -> list[Any]:
    """Values of one option, in a row: nested lists are those of options that may be repeated."""
    if not isinstance(value, list):
        return [value]
    return [each for part in value for each in _rows(part)]


def _flat(options: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _options(configuration: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat(configuration)
    return {name: each for name, each in flat.items() if each is not None and name not in _RUNNING}


def _images(config: Mapping[str, Any], holds: Contents) -> str | None:
    recorded = config.get("trained_on")
    if recorded:
        held = recorded["hold_out"]
        apart = f", of which {held:.0%} were held out" if held else ""
        return f"{recorded['images']} images of {', '.join(map(str, recorded['data']))}{apart}"
    return None if "name" not in holds.data else f"activations of {without_paths(holds.data['name'])}"

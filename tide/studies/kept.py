"""Tensors that the processes of a study share: made once, written to a file, and read by all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import filelock
from torch import Tensor

from tide.activations.batch import ActivationBatch
from tide.files import open_tensors, replace_file, tensors_writer
from tide.provenance import check_unchanged

_CONFIG = "config"


def kept(path: Path, config: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of ``path``, on the CPU; those of ``make``, written there, where there is no such file yet. Where
    several processes ask at the same time, one makes them and the others wait.

    ``config`` is all that they depend on, as JSON has it. Raises :class:`~tide.errors.TideError` for a file of another
    configuration, or a damaged one.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if not path.is_file():
                replace_file(path, tensors_writer(make(), {_CONFIG: json.dumps(config)}))
    with open_tensors(path) as file:
        before = json.loads((file.metadata() or {}).get(_CONFIG, "{}"))
        check_unchanged(
            before,
            json.loads(json.dumps(config)),
            f"{path} was made with other options",
            remedy="use the same options, or another --out",
        )
        return {name: file.get_tensor(name) for name in file.keys()}


def kept_rows(path: Path, config: Mapping[str, Any], make: Callable[[], ActivationBatch]) -> ActivationBatch:
    """Activations as :func:`kept` keeps them."""

    def tensors() -> dict[str, Tensor]:
        batch = make()
        found = {each.name: getattr(batch, each.name) for each in fields(batch) if each.name != "paired"}
        return {name: value for name, value in found.items() if value is not None} | {
            "paired": batch.group.new_tensor([batch.paired])
        }

    found = kept(path, config, tensors)
    paired = bool(found.pop("paired"))
    conditioning = found.pop("conditioning", None)
    return ActivationBatch(**found, conditioning=conditioning, paired=paired)

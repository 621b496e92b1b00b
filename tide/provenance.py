"""Where a result came from: the command, versions and machine that made it, and whether two configurations agree."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tide.errors import TideError


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that its results depend on."""
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
    """The machine that a figure was measured on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def machine_in_words() -> str:
    """What a figure was measured on, for a sentence."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, {device}"


def provenance(
    command: str | None = None, arguments: Mapping[str, Any] | None = None, *, seed: int | None = None
) -> dict[str, Any]:
    """The command with its options, the versions and the machine that made a result, to be written beside it."""
    return {
        "command": command,
        "arguments": dict(sorted((arguments or {}).items())),
        "seed": seed,
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine(),
    }


class Difference(NamedTuple):
    """An option whose value has changed; ``name`` is its path, such as ``loss.mse`` or ``stores[0].rows``."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.before)}, now {_shown(self.now)}"


def first_difference(before: Any, now: Any, defaults: Any = None, name: str = "") -> Difference | None:
    """The first option in which two JSON descriptions differ, or None if they agree.

    An option that one of them lacks, at any depth, takes its value from ``defaults``, or null if there is none.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        usual = defaults if isinstance(defaults, Mapping) else {}
        before, now = {**usual, **before}, {**usual, **now}
        inner = (
            first_difference(before.get(key), now.get(key), usual.get(key), f"{name}.{key}" if name else key)
            for key in dict.fromkeys((*now, *before))
        )
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        inner = (first_difference(was, value, None, f"{name}[{i}]") for i, (was, value) in pairs)
    else:
        same = before == now and isinstance(before, bool) == isinstance(now, bool)
        return None if same else Difference(name, before, now)
    return next((found for found in inner if found is not None), None)


def check_unchanged(before: Any, now: Any, what: str, *, remedy: str, defaults: Any = None) -> None:
    """Raises :class:`~tide.errors.TideError` unless both describe the same (:func:`first_difference`).

    The message is ``{what} ({option} {before}, now {now}); {remedy}``.
    """
    if found := first_difference(before, now, defaults):
        raise TideError(f"{what} ({found}); {remedy}")


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."

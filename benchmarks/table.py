"""Tables, and the record of a run: on what machine, with what versions, when."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "triton", "numpy", "eai-sparsify", "sae-lens")


@dataclass(frozen=True)
class Bar:
    """A figure and its bar: it should be at least ``bar`` or, if ``at_most``, at most ``bar``."""

    what: str
    value: float
    bar: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.bar if self.at_most else self.value >= self.bar

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table whose columns also line up in a terminal."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3f}"


def megabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.1f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def bar_table(bars: Iterable[dict[str, Any]]) -> str:
    """A table of bars, from their records."""
    rows = [
        [b["what"], f"{b['value']:.3g}", f"{'<=' if b['at_most'] else '>='} {b['bar']:g}", "yes" if b["met"] else "no"]
        for b in bars
    ]
    return markdown(["bar", "measured", "wanted", "met"], rows)


def figure_table(figures: dict[str, dict[str, Any]]) -> str:
    """A table of figures by name; missing entries stay empty."""
    rows = [
        [
            name,
            milliseconds(figure.get("seconds")),
            percent(figure.get("spread")),
            megabytes(figure.get("peak_extra_bytes")),
            percent(figure.get("share_of_floor")),
            "" if "gate_error" not in figure else f"{figure['gate_error']:.1e}",
            str(figure.get("note", "")),
        ]
        for name, figure in figures.items()
    ]
    return markdown(["by", "median ms", "spread", "extra MB", "of floor", "gate", "note"], rows)


def device_name(device: torch.device) -> str:
    """The device's name for file names: ``nvidia-h200``, ``cpu``."""
    if device.type != "cuda":
        return device.type
    return "-".join(torch.cuda.get_device_name(device).lower().split())


def environment(device: torch.device) -> dict[str, Any]:
    """What one has to know to judge a figure."""
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }
    if hasattr(os, "sched_getaffinity"):
        found["cores"] = len(os.sched_getaffinity(0))
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = torch.cuda.get_device_name(device)
        found["device_memory_bytes"] = properties.total_memory
        found["multiprocessors"] = properties.multi_processor_count
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def write(path: Path, record: dict[str, Any]) -> None:
    """Replaces the file atomically, so that an interrupted run keeps its results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(path)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        folder = Path(__file__).parent
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""What compute-sanitizer and ncu print, and where they are."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

_SUMMARY = re.compile(r"=+ (?:ERROR|RACECHECK) SUMMARY: (\d+) ")
_FOLDERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/nsight-compute")

# Of ncu's details: the metric, what to call it, and its unit where that is worth repeating.
METRICS = {
    "Compute (SM) Throughput": ("compute", " %"),
    "DRAM Throughput": ("memory", " %"),
    "L2 Cache Throughput": ("L2", " %"),
    "Achieved Occupancy": ("occupancy", " %"),
    "Registers Per Thread": ("registers", ""),
    "No Eligible": ("no warp ready", " %"),
}
SECTIONS = ("SpeedOfLight", "Occupancy", "LaunchStats", "SchedulerStats", "WarpStateStats")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}


def found(tool: str) -> str | None:
    """The path of a tool, on the PATH or where CUDA's toolkit puts it."""
    folders = [str(path) for folder in _FOLDERS for path in (Path(folder), *sorted(Path(folder).glob("*")))]
    return shutil.which(tool) or shutil.which(tool, path=":".join(folders))


def count_of_errors(lines: Iterable[str]) -> int | None:
    """The errors or hazards that compute-sanitizer counted in all processes; None if it said nothing."""
    counts = [int(match[1]) for line in lines if (match := _SUMMARY.match(line))]
    return sum(counts) if counts else None


def first_errors(lines: Sequence[str], most: int = 5) -> list[str]:
    """The first errors that compute-sanitizer names, each with the line that says where."""
    found_at = [i for i, line in enumerate(lines) if re.match(r"=+ (Error|Invalid|Race|Warning)", line)]
    return [" ".join(" ".join(lines[i : i + 2]).replace("=", " ").split())[:300] for i in found_at[:most]]


def profiles(lines: Sequence[str]) -> dict[str, tuple[float, str]]:
    """From ncu's CSV of details: the seconds of each kernel's first launch, and its most telling metrics."""
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return {}
    launches: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        launch, metric, value = row["ID"], row["Metric Name"], row["Metric Value"].replace(",", "")
        names[launch] = row["Kernel Name"]
        if metric == "Duration":
            seconds[launch] = float(value) * _SECONDS[row["Metric Unit"].removesuffix("econd")]
        elif metric in METRICS:
            name, unit = METRICS[metric]
            launches.setdefault(launch, {})[name] = f"{name} {value}{unit}"
    found: dict[str, tuple[float, str]] = {}
    for launch, metrics in launches.items():
        found.setdefault(names[launch], (seconds.get(launch, float("nan")), ", ".join(metrics.values())))
    return found

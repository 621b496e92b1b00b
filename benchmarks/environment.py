"""What one has to know to judge a figure: the machine, the versions, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PACKED_COMMIT = ROOT / "build" / "gpu-pack" / "commit.txt"  # written before the tree travels without its history
_PACKAGES = ("torch", "triton", "numpy", "eai-sparsify", "sae-lens", "flashinfer-python", "diffusers")


def device_name(device: torch.device) -> str:
    """The device's name for file names: ``nvidia-h200``, ``cpu``."""
    return file_name(torch.cuda.get_device_name(device) if device.type == "cuda" else device.type)


def file_name(name: str) -> str:
    """The name in small letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def environment(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": commit(),
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
        found["l2_bytes"] = properties.L2_cache_size
        found["cuda"] = torch.version.cuda or torch.version.hip
    return found


def commit() -> str:
    """The commit of this tree: ``$TIDE_COMMIT``, the file that was packed with it, or what git says; else "unknown".

    A packed commit that git contradicts is shown beside git's, since the file may be an old one.
    """
    if named := os.environ.get("TIDE_COMMIT"):
        return named
    packed, git = _packed(), _git()
    if packed and git and not packed.startswith(git.removesuffix("-dirty")):
        return f"{packed} (packed; git: {git})"
    return packed or git or "unknown"


def _packed() -> str | None:
    try:
        return PACKED_COMMIT.read_text().strip() or None
    except OSError:
        return None


def _git() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

"""``tide doctor``: what this installation is and what it can use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tide.cli.command import Command
from tide.cli.values import Flag


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Show versions, devices, kernel backends and bundled data."""

    json: Flag = False
    """print it as JSON"""

    def run(self) -> None:
        found = examine()
        print(json.dumps(found, indent=2) if self.json else _in_words(found))


def _in_words(found: dict[str, Any]) -> str:
    machine, native = found["machine"], found["native"]
    rows = {
        **found["versions"],
        "machine": f"{machine['platform']}, {machine['cpus']} CPUs, {machine['threads']} threads",
        "GPUs": ", ".join(machine["gpus"]) or "none",
        "devices": ", ".join(found["devices"]),
        **{name: "available" if why is None else f"not used: {why}" for name, why in found["backends"].items()},
        "compiled CPU": native["instructions"] or "none",
        "compiled CUDA": "available" if native["cuda"] is None else native["cuda"],
        **{name: "there" if why is None else f"missing: {why}" for name, why in found["bundled"].items()},
        "disk": f"{found['disk_free_gb']:.1f} GB free here",
    }
    missing = [name for name, state in found["bundled"].items() if state is not None]
    ready = "the demo can run" if not missing else f"the demo cannot run: no {' and no '.join(missing)}"
    last = f"Kernels run on the {found['used']} backend, and {ready}."
    return "\n".join([*(f"{name:14} {what}" for name, what in rows.items()), last])


def examine() -> dict[str, Any]:
    """``backends`` and ``bundled`` map a name to None, or to why it is not there."""
    import platform
    import shutil

    import torch

    from tide.devices import device_names, device_of
    from tide.provenance import machine, versions
    from tide.scenes.pipeline import DATA
    from tide_kernels import backend_status, native
    from tide_kernels.dispatch import choose

    device = device_of(None)
    used = choose("auto", "auto", device=device, dtype=torch.float32, n_latents=18432, k=922)
    backends = backend_status()
    parts = {"pipeline": DATA / "pipeline" / "model_index.json", "judge": DATA / "judge" / "model.safetensors"}
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine(),
        "devices": device_names(),
        "backends": backends,
        "used": used.backend,
        "native": {"instructions": native.instruction_set(), "cuda": native.cuda_unavailable()},
        "bundled": {name: None if file.is_file() else f"{file} does not exist" for name, file in parts.items()},
        "disk_free_gb": shutil.disk_usage(".").free / 1e9,
    }

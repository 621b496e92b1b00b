"""``tide doctor``: what this installation is and what it can use."""

from __future__ import annotations

import argparse
from typing import Any

from tide.cli.usage import Usage

USAGE = Usage("json")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="versions, devices, kernel backends, bundled data")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    import json

    found = examine()
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, version in found["versions"].items():
        print(f"{name:14} {version}")
    machine = found["machine"]
    print(f"{'machine':14} {machine['platform']}, {machine['cpus']} CPUs, {machine['threads']} threads")
    print(f"{'GPUs':14} {', '.join(machine['gpus']) or 'none'}")
    for name, reason in found["backends"].items():
        print(f"{name:14} {'available' if reason is None else f'not used: {reason}'}")
    native = found["native"]
    print(f"{'compiled CPU':14} {native['instructions'] or 'none'}")
    print(f"{'compiled CUDA':14} {'available' if native['cuda'] is None else native['cuda']}")
    for name, state in found["bundled"].items():
        print(f"{name:14} {'there' if state is None else f'missing: {state}'}")
    print(f"{'disk':14} {found['disk_free_gb']:.1f} GB free here")
    missing = [name for name, state in found["bundled"].items() if state is not None]
    ready = "the demo can run" if not missing else f"the demo cannot run: no {' and no '.join(missing)}"
    print(f"Kernels run on the {found['used']} backend, and {ready}.")


def examine() -> dict[str, Any]:
    """``backends`` and ``bundled`` map a name to None, or to why it is not there."""
    import platform
    import shutil

    import torch

    from tide.cli import common
    from tide.provenance import machine, versions
    from tide.scenes.pipeline import DATA
    from tide_kernels import backend_status, native
    from tide_kernels.dispatch import choose

    device = common.device_of(None)
    used = choose("auto", "auto", device=device, dtype=torch.float32, n_latents=18432, k=922)
    backends = backend_status()
    parts = {"pipeline": DATA / "pipeline" / "model_index.json", "judge": DATA / "judge" / "model.safetensors"}
    return {
        "versions": {"python": platform.python_version(), **versions()},
        "machine": machine(),
        "backends": backends,
        "used": used.backend,
        "native": {"instructions": native.instruction_set(), "cuda": native.cuda_unavailable()},
        "bundled": {name: None if file.is_file() else f"{file} does not exist" for name, file in parts.items()},
        "disk_free_gb": shutil.disk_usage(".").free / 1e9,
    }

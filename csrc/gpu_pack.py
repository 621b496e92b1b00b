"""Packs into build/gpu-pack what a GPU machine without network lacks: `make gpu-pack`.

There it is put in place by `bash build/gpu-pack/install.sh`.

It packs the compiled kernels, the peers of the benchmarks and the packages this project needs that are not expected
there. The machine is one with Python 3.12, torch 2.11 for CUDA 13, Triton, transformers, pytest and the like; a wheel
brings nothing with it, so a package that is missed shows in what install.sh prints. The tree and the pack together
stay below 64 MiB: of what would go beyond, the last groups are left out.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from check_cuda import ARCHITECTURES
from torch_headers import headers

ROOT = Path(__file__).parents[1]
PACK = ROOT / "build" / "gpu-pack"
MOST = 64 << 20
TORCH, PYTHON = "2.11.0", "3.12"
GLIBC = (17, 24, 27, 28, 31, 34, 35)  # pip matches a platform exactly
# The most wanted first.
GROUPS = {
    "this project": ["diffusers", "tyro", "docstring-parser", "typeguard"],
    "sparsify": ["eai-sparsify", "simple-parsing", "datasets", "dill", "multiprocess", "natsort", "schedulefree"],
    # Its package imports its trainer, which imports wandb, which imports opentelemetry.
    "sae-lens": [
        *("sae-lens", "transformer-lens", "better-abc", "wandb", "pydantic", "pydantic-core", "annotated-types"),
        *("typing-inspection", "platformdirs", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-proto"),
        *("opentelemetry-semantic-conventions", "opentelemetry-exporter-otlp-proto-http"),
        *("opentelemetry-exporter-otlp-proto-common", "opentelemetry-exporter-otlp-common"),
        *("opentelemetry-exporter-http-transport", "googleapis-common-protos"),
    ],
}


def run(command: list[str]) -> str:
    """What the command prints.

    Raises:
        SystemExit: it fails.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def build_cuda(library: Path) -> None:
    """Against the machine's torch, of which only the headers and the names of its libraries are needed."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("c10", "torch_cpu", "torch_cuda"):
            soname = f"-Wl,-soname,lib{name}.so"
            run(["cc", "-shared", soname, "-x", "c", "/dev/null", "-o", f"{folder}/lib{name}.so"])
        command = ["nvcc", "-shared", "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-DUSE_CUDA"]
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(headers(TORCH)), "--threads", "2"]
        command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
        command += [str(source) for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
        command += [f"-L{folder}", "-Xlinker", "--no-as-needed", "-ltorch_cpu", "-ltorch_cuda", "-lc10"]
        run([*command, "-o", str(library)])


def fetch(packages: list[str], folder: Path) -> None:
    """Wheels of these packages and of nothing that they need."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += [f"--python-version={PYTHON}", "--implementation=cp", "--constraint=constraints.txt", f"--dest={folder}"]
    command += [f"--platform=manylinux_2_{version}_x86_64" for version in GLIBC]
    run([*command, "--platform=manylinux2014_x86_64", *packages])


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tree_size() -> int:
    names = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).split("\0")
    return sum((ROOT / name).stat().st_size for name in names if name and (ROOT / name).is_file())


def pack_wheels(room: int) -> list[str]:
    """Adds the groups that fit into so many bytes; returns the names of the others."""
    left_out = []
    for name, packages in GROUPS.items():
        with tempfile.TemporaryDirectory() as folder:
            fetch(packages, Path(folder))
            if size(Path(folder)) > room:
                left_out.append(f"{name} ({size(Path(folder)) / 2**20:.1f} MiB)")
                continue
            room -= size(Path(folder))
            for wheel in Path(folder).iterdir():
                shutil.copy(wheel, PACK / "wheels")
    return left_out


def main() -> None:
    built = sorted((ROOT / "tide_kernels").glob("_native_cpu*.so"))
    if not built:
        sys.exit("the compiled CPU kernels are not built: run make setup, which needs a C++ compiler")
    if shutil.which("nvcc") is None:
        sys.exit("the compiled CUDA kernels cannot be built: nvcc is not on PATH")
    shutil.rmtree(PACK, ignore_errors=True)
    for folder in ("wheels", "tide_kernels"):
        (PACK / folder).mkdir(parents=True)
    changed = " with changes" if run(["git", "status", "--porcelain"]).strip() else ""
    (PACK / "commit.txt").write_text(run(["git", "rev-parse", "HEAD"]).strip() + changed + "\n")
    shutil.copy(built[0], PACK / "tide_kernels")
    shutil.copy(ROOT / "csrc" / "gpu_install.sh", PACK / "install.sh")
    build_cuda(PACK / "tide_kernels" / "_native_cuda.abi3.so")
    left_out = pack_wheels(MOST - tree_size() - size(PACK))
    tree, pack = tree_size() / 2**20, size(PACK) / 2**20
    print(f"{PACK.relative_to(ROOT)}: {pack:.1f} MiB, with the tree {tree + pack:.1f} of {MOST >> 20} MiB")
    print(f"commit {(PACK / 'commit.txt').read_text().strip()}")
    print("\n".join(sorted(path.name for path in PACK.glob("*/*"))))
    if left_out:
        print(f"left out, too large: {', '.join(left_out)}")


if __name__ == "__main__":
    main()

"""Compiles csrc/cuda for the GPUs it is meant for and fails on register spills: `python csrc/check_cuda.py`.

Needs nvcc and any torch, with or without CUDA, for its headers; no GPU. Where there is no nvcc it says so and
succeeds, unless --require is given.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ARCHITECTURES = ("80", "90a", "100a")
FOLDER = Path(__file__).parent / "cuda"


def compiled(source: Path, nvcc: str, folder: str) -> str:
    """What ptxas says about a source's kernels.

    Raises:
        SystemExit: it does not compile.
    """
    include = Path(torch.__file__).parent / "include"
    command = [nvcc, "-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-DUSE_CUDA", "-isystem", str(include)]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "--threads", "2", "-Xptxas", "-v"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]
    command += ["-gencode=arch=compute_90,code=compute_90", "-c", str(source)]
    done = subprocess.run([*command, "-o", f"{folder}/{source.stem}.o"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source} does not compile:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def kernels(report: str) -> list[tuple[str, str, int, int, int]]:
    """Architecture, name, registers, bytes of shared memory and of spills of each kernel in ptxas's report."""
    found = []
    entries = re.split(r"Compiling entry function '", report)[1:]
    for entry in entries:
        name, architecture = re.match(r"(\w+)' for '(\w+)'", entry).groups()
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", entry)))
        registers = int(re.search(r"Used (\d+) registers", entry)[1])
        shared = re.search(r"(\d+) bytes smem", entry)
        found.append((architecture, name, registers, int(shared[1]) if shared else 0, spills))
    return found


def readable(name: str) -> str:
    """A mangled name without namespaces and arguments."""
    demangler = shutil.which("c++filt")
    if demangler is None:
        return name
    plain = subprocess.run([demangler, name], capture_output=True, text=True).stdout.strip()
    return re.sub(r"^.*?(\w+_kernel)", r"\1", plain).rsplit("(", 1)[0].replace("tide::", "")


def main() -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("CUDA sources are not checked: nvcc is not on PATH")
        sys.exit("--require" in sys.argv)
    spilling = 0
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted(FOLDER.glob("*.cu")):
            for architecture, name, registers, shared, spilled in kernels(compiled(source, nvcc, folder)):
                sizes = f"{registers:3} registers {shared:5} B shared {spilled:3} B spilled"
                print(f"{architecture:7} {sizes}  {readable(name)}")
                spilling += spilled > 0
    if spilling:
        sys.exit(f"{spilling} kernels spill registers")


if __name__ == "__main__":
    main()

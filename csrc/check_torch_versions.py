"""Compiles csrc/ with the headers of the oldest and of the newest torch: `python csrc/check_torch_versions.py`.

The oldest is the one that pyproject.toml asks for. Versions may be named instead. CUDA sources are left out where
there is no nvcc.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch_headers import headers

FOLDER = Path(__file__).parent
NEWEST = "2.15.0"  # the newest that was there to try
COMMON = ["-std=c++17", "-DTORCH_TARGET_VERSION=0x020a000000000000"]


def oldest() -> str:
    """The first release that the package's dependency on torch allows."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    (bound,) = (found[1] for line in project["dependencies"] if (found := re.fullmatch(r"torch>=([\d.]+)", line)))
    return bound if bound.count(".") == 2 else f"{bound}.0"


def commands(include: Path, objects: str) -> dict[Path, list[str]]:
    """How to compile each source: host code is only parsed, CUDA code compiled for one architecture."""
    parse = [shutil.which("c++") or "g++", *COMMON, "-fsyntax-only", "-isystem", str(include)]
    sources = [FOLDER / "schema.cpp", *sorted((FOLDER / "cpu").glob("*.cpp"))]
    found = {source: [*parse, str(source)] for source in sources if source.stem != "variant"}
    nvcc = shutil.which("nvcc")
    if nvcc is not None:
        build = [nvcc, *COMMON, "-DUSE_CUDA", "-isystem", str(include), "-gencode=arch=compute_90a,code=sm_90a"]
        for source in sorted((FOLDER / "cuda").glob("*.cu")):
            found[source] = [*build, "-c", str(source), "-o", f"{objects}/{source.stem}.o"]
    return found


def failures(version: str) -> list[str]:
    """What the compilers say of the sources that do not compile with this torch."""
    with tempfile.TemporaryDirectory() as objects, ThreadPoolExecutor(2) as pool:
        runs = commands(headers(version), objects)
        done = pool.map(lambda command: subprocess.run(command, capture_output=True, text=True), runs.values())
        failed = [
            f"{source}:\n{run.stdout}{run.stderr}" for source, run in zip(runs, done, strict=True) if run.returncode
        ]
    print(f"torch {version}: {len(runs) - len(failed)} of {len(runs)} sources compile")
    return failed


def main() -> None:
    if shutil.which("nvcc") is None:
        print("CUDA sources are not checked: nvcc is not on PATH")
    failed = [
        f"with torch {version}, {text}" for version in sys.argv[1:] or (oldest(), NEWEST) for text in failures(version)
    ]
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()

"""The C++ headers of any released torch, without installing it: a wheel is fetched without its dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).parents[1] / "build" / "torch-headers"
# macOS's wheels have the same headers as Linux's, of CUDA's helpers too, and are the smallest.
PLATFORMS = ("macosx_11_0_arm64", "macosx_14_0_arm64")


def headers(version: str) -> Path:
    """The folder for the compiler's ``-isystem``; fetched once, then kept below ``build``.

    Raises:
        SystemExit: the wheel cannot be fetched.
    """
    kept = CACHE / version
    if kept.is_dir():
        return kept / "torch" / "include"
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        command += ["--python-version=3.11", f"--dest={folder}", f"torch=={version}"]
        # A constraint on the torch to install is none on the headers to read.
        environment = {**os.environ, "PIP_CONSTRAINT": os.devnull}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the headers of torch {version} cannot be fetched:\n{done.stderr.strip()}")
        (wheel,) = Path(folder).glob("*.whl")
        unpacked = Path(folder, "unpacked")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [n for n in archive.namelist() if n.startswith("torch/include/")])
        unpacked.rename(kept)
    return kept / "torch" / "include"

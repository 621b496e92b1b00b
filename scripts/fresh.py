"""A fresh environment with a built wheel in it, and the tests run there away from the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What the tests need beside what the wheel asks for.
TESTERS = ("pytest", "hypothesis")


class Fresh:
    """An environment in a folder, made by ``python``, which lends its packages where it has torch.

    There is no compiler: only the environment's own programs are on PATH. ``torch`` is another release of torch than
    that of constraints.txt.
    """

    def __init__(self, folder: Path, python: str, wheel: Path, extras: str = "", torch: str | None = None) -> None:
        self.folder = folder
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)
        self.bin = folder / "venv" / "bin"
        script = "import torch, sysconfig; print(sysconfig.get_paths()['purelib'])"
        lent = subprocess.run([python, "-c", script], capture_output=True, text=True)
        if lent.returncode == 0:
            (site,) = (folder / "venv").glob("lib/python*/site-packages")
            (site / "lent.pth").write_text(lent.stdout)
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        if torch is not None:  # and the Triton that it asks for
            pins = [pin for pin in pins if not pin.startswith(("torch==", "triton=="))] + [f"torch=={torch}"]
        (folder / "constraints.txt").write_text("\n".join(pins))
        constraint = ["--constraint", str(folder / "constraints.txt")]
        self.run("pip", "install", "--quiet", *constraint, f"{wheel}{extras}", *TESTERS)

    def run(self, module: str, *arguments: str, **variables: str) -> str:
        """What ``python -m module`` prints.

        Raises:
            SystemExit: it fails.
        """
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TIDE_NATIVE_LIBRARY")}
        nowhere = {"PATH": str(self.bin), "CC": "/bin/false", "CXX": "/bin/false", **variables}
        command = [str(self.bin / "python"), "-m", module, *arguments]
        done = subprocess.run(command, cwd=self.folder, env={**kept, **nowhere}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def unpack(self, sdist: Path) -> None:
        """Everything of the source distribution but the packages: the tests meet those that are installed."""
        with tarfile.open(sdist) as archive:
            archive.extractall(self.folder / "unpacked", filter="data")
        (tree,) = (self.folder / "unpacked").iterdir()
        for entry in tree.iterdir():
            if entry.name not in ("tide", "tide_kernels", "tide_sae.egg-info", "constraints.txt"):
                shutil.move(entry, self.folder)

    def test(self, *arguments: str) -> str:
        """The last line of the tests' report."""
        return self.run("pytest", "-q", "-p", "no:cacheprovider", *arguments).strip().splitlines()[-1]

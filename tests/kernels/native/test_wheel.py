"""Source distribution, wheel and install, in a separate environment outside the source tree."""

import os
import subprocess
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

CHECK = """
import sys, torch, tide_kernels
assert "tide_kernels.native" not in sys.modules
from tide_kernels import native
print(native.__file__)
print(native.unavailable())
if native.unavailable() is None:
    print(native.select(torch.tensor([[1.0, 3.0, 2.0]]), 2)[1].tolist())
"""


@pytest.fixture
def python(tmp_path):
    """An environment that sees this one's packages but not this source tree."""
    venv.create(tmp_path / "venv", symlinks=True)
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (site / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return str(tmp_path / "venv" / "bin" / "python")


def run(python, *arguments, cwd, path=None):
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def wheel(python, source, folder, path=None):
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "-v", "--wheel-dir", str(folder)]
    log = run(python, "-m", "pip", "wheel", *options, str(source), cwd=folder, path=path)
    (made,) = folder.glob("*.whl")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", str(made), cwd=folder)
    return made, log


def sdist(python, folder):
    """Builds from a copy, so that nothing is left in the source tree."""
    files = ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "tide_kernels", "csrc"]
    copy = folder / "copy"
    copy.mkdir()
    for name in files:
        subprocess.run(["cp", "-r", str(ROOT / name), str(copy)], check=True)
    for built in copy.glob("tide_kernels/_native*"):
        built.unlink()
    script = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    run(python, "-c", script, cwd=copy)
    (made,) = folder.glob("*.tar.gz")
    with tarfile.open(made) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {str(path.relative_to(copy)) for path in copy.glob("csrc/**/*.*")} <= packed
    return made


@pytest.mark.slow
def test_a_wheel_from_the_source_distribution_works_elsewhere(python, tmp_path):
    made, _ = wheel(python, sdist(python, tmp_path), tmp_path)
    assert "cp311-abi3" in made.name
    where, reason, indices = run(python, "-c", CHECK, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(tmp_path / "venv")
    assert reason == "None"
    assert indices == "[[1, 2]]"


@pytest.mark.slow
def test_without_a_compiler_the_install_succeeds_and_says_so(python, tmp_path):
    _, log = wheel(python, sdist(python, tmp_path), tmp_path, path=str(tmp_path / "nothing"))
    assert len([line for line in log.splitlines() if "compiled kernels are not built" in line]) == 1
    _, reason = run(python, "-c", CHECK, cwd=tmp_path, path=str(tmp_path / "nothing")).splitlines()
    assert reason.startswith("not built: no C++ compiler; run pip install")

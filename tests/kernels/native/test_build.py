"""`setup.py build_ext --inplace`: a failure names the compiler's error, and pyproject.toml is not read."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tide_kernels import native

ROOT = Path(__file__).resolve().parents[3]


FAILING = """
def fail():
    assert False

try:
    compile_aloud(fail)
except RuntimeError as error:
    print(error)
"""


@pytest.fixture
def source(tmp_path):
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "tide_kernels").mkdir()
    (tmp_path / "pyproject.toml").write_text("no TOML [")
    return tmp_path


def test_a_failed_build_is_explained(source, monkeypatch):
    (source / "csrc" / "cpu" / "variant.cpp").write_text("int broken = unheard_of;\n")
    stale = source / "tide_kernels" / "_native_cpu.abi3.so"
    stale.write_text("of an earlier build")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not all compiled kernels were built" in done.stderr
    assert not stale.exists()
    monkeypatch.delenv("TIDE_NATIVE_LIBRARY", raising=False)
    monkeypatch.setattr(native, "_FOLDER", source / "tide_kernels")
    reason = native._library.__wrapped__()
    assert reason.startswith("not built: its build failed: ")
    assert "unheard_of" in reason


def test_a_failure_without_words_is_named(source):
    """An AssertionError of torch or setuptools may say nothing; an install has to continue all the same."""
    functions = (source / "setup.py").read_text().partition("\nif sys.argv")[0]
    script = f"{functions}\n{FAILING}"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "AssertionError\n"), done.stderr

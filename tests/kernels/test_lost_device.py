"""A test that breaks the GPU's context does not fail the tests after it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONFTEST = """
from tests.helpers import lost_device
from tests.helpers.lost_device import pytest_runtest_makereport, pytest_runtest_protocol

lost_device.context_lost = lambda: lost
lost = False
"""
TESTS = """
import conftest
import pytest

@pytest.mark.parametrize("i", range(12))
def test_kernel(i):
    if i == 3:
        conftest.lost = True
    assert not conftest.lost
    assert i != 8
"""


def run(folder, *options):
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", "--rootdir=.", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    return done.stdout + done.stderr


def test_with_xdist_other_processes_run_the_rest(tmp_path):
    pytest.importorskip("xdist")
    output = run(tmp_path, "-n", "2")
    assert set(re.findall(r"FAILED test_it\.py::test_kernel\[(\d+)\]", output)) == {"3", "8"}
    assert set(re.findall(r"PASSED test_it\.py::test_kernel\[(\d+)\]", output)) == set(map(str, {*range(12)} - {3, 8}))
    assert "crashed while running 'test_it.py::test_kernel[3]'" in output


def test_without_xdist_the_session_ends_and_says_after_which_test(tmp_path):
    output = run(tmp_path, "-p", "no:xdist")
    assert "test_it.py::test_kernel[3] lost the context on the GPU" in output
    assert "1 failed, 3 passed" in output

"""The tests that a GPU makes worth running."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial

from benchmarks.gpu.check import Check, Unit

TESTS = "tests/kernels"
# They need diffusers, so the stage "training" runs them.
TRAINING_TESTS = "tests/training"
DRY_TESTS = ["--collect-only", "-qq", f"{TESTS}/test_reference_gpu.py"]
PROCESSES = "16"
ONE_TEST = "100"  # seconds


def gpu_tests(check: Check) -> None:
    """The tests marked gpu."""
    check.unit("marked gpu", partial(run_tests, check, ["-m", "gpu", TESTS]))


def kernel_tests(check: Check) -> None:
    """The tests of Triton kernels, which elsewhere run in the interpreter."""
    folder = f"{TESTS}/triton"
    check.unit("Triton", partial(run_tests, check, [f"--ignore={folder}/test_aot.py", folder]))


def run_tests(check: Check, selection: list[str], unit: Unit, folder: str = TESTS) -> None:
    """Runs tests below ``folder``, whose conftest.py and those below it count; if they fail, so does the unit."""
    # tests/conftest.py is for pipelines and needs diffusers.
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command.append(f"--confcutdir={folder}")
    if check.dry_run:
        command += DRY_TESTS
    else:
        command += [*_plugins(), *selection]
    # Wide enough for the summary to say why a test failed.
    code, lines = check.run(command, COLUMNS="240")
    unit.notes += [line for line in lines if line.startswith(("FAILED", "ERROR"))] + lines[-1:]
    if code:
        raise RuntimeError(f"pytest ended with {code}: {' '.join(lines[-1:]) or 'it printed nothing'}")


def _plugins() -> list[str]:
    """Several processes where there is xdist, and a limit for each test where there is pytest-timeout as well."""
    if importlib.util.find_spec("xdist") is None:
        return []
    parallel = ["-n", PROCESSES]
    if importlib.util.find_spec("pytest_timeout") is None:
        return parallel
    return [*parallel, f"--timeout={ONE_TEST}", "--timeout-method=thread"]

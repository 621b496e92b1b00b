"""Pytest hooks: a process whose context on the GPU is lost runs no more tests.

After a fault in a kernel every later call fails in the same process, so one wrong kernel would fail all tests that come
after it. With xdist the process ends instead, which xdist reports as a crash of this test; another process takes the
tests that are left. Without xdist the session ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest

_LOST = pytest.StashKey[bool]()
_EXIT = 70  # "internal software error" of sysexits.h


def context_lost() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and context_lost():
        item.stash[_LOST] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    done = yield
    # The reports of the test are sent, but xdist does not know yet that it is over: it blames this one for the crash.
    if item.stash.get(_LOST, False):
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(_EXIT)
        pytest.exit(f"{item.nodeid} lost the context on the GPU: nothing else can run in this process", _EXIT)
    return done

"""Importing the packages loads what ``startup.json`` lists, and what torch has loaded before, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED = json.loads((Path(__file__).parent / "startup.json").read_text())


@pytest.mark.parametrize("package", ALLOWED)
def test_importing_loads_what_is_allowed(package):
    new = "print(json.dumps([*set(sys.modules) - before]))"
    code = f"import json, sys, torch; before = set(sys.modules); import {package}; {new}"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert sorted(loaded) == ALLOWED[package]

"""The names of the package itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tide


@pytest.mark.parametrize("name", tide.__all__)
def test_every_name_is_there(name):
    found = getattr(tide, name)
    assert name == "scenes" or found is getattr(sys.modules[tide._HOME[name]], name)


def test_type_checkers_are_told_the_same():
    tree = ast.parse(Path(tide.__file__).read_text())
    (block,) = [each for each in tree.body if isinstance(each, ast.If)]
    told = {name.name: each.module for each in block.body for name in each.names}
    assert told == {**tide._HOME, "scenes": "tide"}
    assert sorted(told) == sorted(tide.__all__) == dir(tide)


def test_importing_it_loads_nothing_else():
    code = "import sys, tide; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The names of the package, which are loaded when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tide import interpretation


@pytest.mark.parametrize("name", interpretation.__all__)
def test_every_name_is_what_its_module_has(name):
    found = getattr(interpretation, name)
    assert callable(found)
    assert found is getattr(sys.modules[found.__module__], name)


def test_no_name_is_that_of_a_module():
    """But for one that is there from the beginning: an imported module would take a name's place."""
    modules = {path.stem for path in Path(interpretation.__file__).parent.glob("*.py")}
    assert modules & set(interpretation.__all__) == {"abrupt_change"}


def test_type_checkers_are_told_the_same():
    tree = ast.parse(Path(interpretation.__file__).read_text())
    (block,) = [each for each in tree.body if isinstance(each, ast.If)]
    told = {name.name: each.module for each in block.body for name in each.names}
    assert all(
        module in sys.modules[getattr(interpretation, name).__module__].__name__ for name, module in told.items()
    )
    assert sorted([*told, "abrupt_change"]) == sorted(interpretation.__all__) == dir(interpretation)


def test_names_of_latents_are_imported_without_pipelines():
    code = "import sys, tide.interpretation.names; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

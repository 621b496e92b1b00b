"""Packages whose names are loaded when they are first used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

PACKAGES = [import_module(name) for name in ("tide.editing", "tide.index", "tide.interpretation")]
#: Loaded at once: its module has its name.
EAGER = {"abrupt_change"}


def told(package) -> dict[str, str]:
    """Name -> module, as type checkers are told."""
    (block,) = [each for each in ast.parse(Path(package.__file__).read_text()).body if isinstance(each, ast.If)]
    return {name.name: each.module for each in block.body for name in each.names}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_name_is_what_its_module_has(package):
    assert sorted(told(package).keys() | (EAGER & set(package.__all__))) == sorted(package.__all__)
    for name, module in told(package).items():
        assert getattr(package, name) is getattr(import_module(module), name)
    assert dir(package) == sorted(told(package))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_name_is_that_of_a_module(package):
    """An imported module would take a name's place."""
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert modules & set(package.__all__) <= EAGER


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_name_that_there_is_not(package):
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize(
    "module",
    [
        "tide.interpretation.names",
        "tide.editing.recipe",
        "tide.index.reading",
        "tide.browser.app",
        "tide.pipeline_names",
    ],
)
def test_what_the_server_needs_is_imported_without_pipelines(module):
    code = f"import sys, {module}; sys.exit(bool({{'diffusers', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

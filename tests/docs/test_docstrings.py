"""Every public name has a docstring that names its parameters or fields, and whose roles name something."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from tests.helpers.docstrings import gaps
from website.public import INTERNAL, PACKAGES, ROOT, public_names

NAMES = public_names()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.full)
def test_a_public_name_is_documented(name):
    assert list(gaps(name)) == []


def test_every_package_with_a_list_of_names_is_public_or_internal():
    files = [path for top in ("tide", "tide_kernels") for path in (ROOT / top).rglob("*.py")]
    listing = {_module(path) for path in files if "\n__all__ = [" in path.read_text(encoding="utf-8")}
    assert listing == {*PACKAGES, *INTERNAL}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_names_of_a_package_are_all_there(package):
    values = {id(name.value) for name in NAMES}
    listed = [getattr(import_module(package), name) for name in import_module(package).__all__]
    assert [value for value in listed if id(value) not in values and not hasattr(value, "__path__")] == []

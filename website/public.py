"""What is public in Python: the names of the packages' ``__all__``, and those that the pages' code uses."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.helpers.names import dotted_names

ROOT = Path(__file__).parents[1]
#: Packages whose ``__all__`` is public, as the reference lists them. `tide` itself takes its names from them.
PACKAGES = (
    "tide",
    "tide.activations",
    "tide.adapters",
    "tide.sae",
    "tide.sae.activation",
    "tide.training",
    "tide.evaluation",
    "tide.evaluation.scorers",
    "tide.interpretation",
    "tide.interpretation.effect",
    "tide.interpretation.naming",
    "tide.interpretation.names",
    "tide.editing",
    "tide.guards",
    "tide.index",
    "tide.images",
    "tide.scenes",
    "tide.probing",
    "tide.planning",
    "tide.conversion",
    "tide.sharing",
    "tide.hub",
    "tide.files",
    "tide_kernels",
)
#: Have ``__all__`` for their neighbours alone: studies are for the command line, and primitives of a backend for
#: ``tide_kernels/dispatch.py``.
INTERNAL = ("tide.studies.safety", "tide_kernels.triton", "tide_kernels.triton.transpose")


@dataclass(frozen=True)
class Name:
    """A public name: the ``module`` that it is documented under, and what it stands for."""

    module: str
    name: str
    value: Any

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def kind(self) -> str:
        """ "class", "exception", "function" or "data"."""
        if inspect.isclass(self.value):
            return "exception" if issubclass(self.value, BaseException) else "class"
        return "function" if inspect.isroutine(self.value) else "data"


@cache
def public_names() -> tuple[Name, ...]:
    """Every public name once, under the first package that has it and is not ``tide``, or else under the module that
    defines it."""
    found: dict[int, Name] = {}
    for package in PACKAGES[1:]:
        for name in import_module(package).__all__:
            value = getattr(import_module(package), name)
            found.setdefault(id(value), Name(package, name, value))
    for module, name in sorted(_of_tide() | _of_pages()):
        value = getattr(import_module(module), name)
        if not inspect.ismodule(value):
            found.setdefault(id(value), Name(_home(value, module), name, value))
    return tuple(found.values())


def _of_tide() -> set[tuple[str, str]]:
    return {("tide", name) for name in import_module("tide").__all__}


def _of_pages() -> set[tuple[str, str]]:
    """Module and name of what the Python blocks of the pages import or read."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = (block for page in pages for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    found = {split(name) for text in texts for name in dotted_names(text)}
    return {(module, name) for module, name in found if name and module not in ("tide", *INTERNAL)}


def _home(value: Any, module: str) -> str:
    home: str = getattr(value, "__module__", module)
    return home if home.split(".")[0] in ("tide", "tide_kernels") else module


def split(name: str) -> tuple[str, str]:
    """The module that a dotted name begins with, and the next part of it ("" for a module). Where a package has a
    function of the name of a module, such as ``tide.activations.collect``, the function is meant."""
    module, *parts = name.split(".")
    while parts and _is_module(module, parts[0]):
        module = f"{module}.{parts.pop(0)}"
    return module, parts[0] if parts else ""


def _is_module(package: str, name: str) -> bool:
    found = import_module(package)
    if not hasattr(found, "__path__") or find_spec(f"{package}.{name}") is None:
        return False
    return inspect.ismodule(getattr(found, name, found))


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods, properties and class methods that a class itself defines, by name."""
    for name, value in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(value, (classmethod, staticmethod)):
            yield name, value.__func__
        elif isinstance(value, property) or inspect.isfunction(value):
            yield name, value


def data_comment(name: Name) -> str:
    """The ``#:`` comment in front of a public constant or alias, in the package that documents it; "" if it has
    none."""
    file = Path(import_module(name.module).__file__ or "")
    for path in sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]:
        found = re.search(rf"((?:^#: ?.*\n)+){name.name}\b.*=", path.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return " ".join(line.removeprefix("#:").strip() for line in found[1].splitlines())
    return ""

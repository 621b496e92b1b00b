"""Dotted names of the project's packages: those that a text holds, and whether they are there."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec

PACKAGES = ("tide", "tide_kernels")


def dotted_names(code: str) -> set[str]:
    """``tide...`` and ``tide_kernels...`` as Python code imports or reads them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return {name for name in found if name.split(".")[0] in PACKAGES and name.replace(".", "").isidentifier()}


def resolved(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one or of what is inside one."""
    parts = name.split(".")
    found, i = import_module(parts[0]), 1
    while i < len(parts) and hasattr(found, "__path__") and find_spec(".".join(parts[: i + 1])):
        found, i = import_module(".".join(parts[: i + 1])), i + 1
    for part in parts[i:]:
        if part in getattr(found, "__dataclass_fields__", {}):  # a field without a default
            return True
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True

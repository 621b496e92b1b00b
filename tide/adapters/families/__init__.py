"""TIDE's own model families, a module each: a :class:`~tide.adapters.spec.Spec`, and code where a family is odd."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

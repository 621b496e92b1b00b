"""Adapters of one's own in tests: what they register, and the modules that they are in, end with the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tide.adapters import own, pipelines, registry
from tide.adapters.installed import import_installed


@contextmanager
def own_modules(folder: Path) -> Iterator[None]:
    """While open, modules in ``folder`` can be imported; afterwards neither they nor their adapters are known."""
    tables = (registry._ADAPTERS, own._IMPORTED)
    sets = (registry._OF_KNOWN_PIPELINES, pipelines._ALLOWED, registry._CODE)
    before, members = [dict(table) for table in tables], [set(each) for each in sets]
    modules, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    import_installed.cache_clear()
    try:
        yield
    finally:
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name not in modules and Path(file).is_relative_to(folder):
                del sys.modules[name]
        for table, former in zip(tables, before, strict=True):
            table.clear()
            table.update(former)
        for each, former in zip(sets, members, strict=True):
            each.clear()
            each.update(former)
        import_installed.cache_clear()

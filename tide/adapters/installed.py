"""Adapters of installed packages: the entry points of the group ``tide.adapters``, each a module that registers."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import entry_points

from tide.errors import TideWarning
from tide.messages import one_line

#: In a package's pyproject.toml: ``[project.entry-points."tide.adapters"]``, ``mine = "my_package.adapter"``.
GROUP = "tide.adapters"


@cache
def import_installed() -> bool:
    """Imports the module of every entry point, once a process; whether there was one. A module that fails is reported
    as a :class:`~tide.errors.TideWarning`, because another may be the one that is needed."""
    found = entry_points(group=GROUP)
    for point in found:
        try:
            point.load()
        except Exception as error:
            package = "" if point.dist is None else f" of the package {point.dist.name}"
            warnings.warn(
                f"the adapter {point.value}{package} could not be loaded ({type(error).__name__}: {one_line(error)}); "
                "update the package or uninstall it",
                TideWarning,
                stacklevel=2,
            )
    return bool(found)

"""A probe's file, tried on its pipeline before anyone relies on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tide.adapters import adapter_for
from tide.adapters.registry import provisional
from tide.probing.checks import Result, checks
from tide.probing.probe import Probe
from tide.probing.writing import text_of


def tried(found: Probe, pipe: Any) -> Iterator[Result]:
    """The results of all checks of the adapter that the file would register, which is registered meanwhile only.

    Args:
        found: of the pipeline.
        pipe: that was probed.
    """
    with provisional():
        exec(compile(text_of(found), "<probe>", "exec"), {"__name__": "tide_probe"})
        yield from checks(adapter_for(pipe))

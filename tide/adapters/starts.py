"""Where a run of a pipeline begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tide.adapters.standins import listened


@contextmanager
def each_start(pipe: Any, started: Callable[[], None]) -> Iterator[None]:
    """While open, calls ``started`` when a run of ``pipe`` begins: at its ``check_inputs``, or of a pipeline without
    it (DiT's) at ``progress_bar``, which the loops of diffusers' pipelines call once. A pipeline with neither does not
    tell."""
    name = next((name for name in ("check_inputs", "progress_bar") if hasattr(pipe, name)), None)
    if name is None:
        yield
        return
    with listened(pipe, name, before=lambda *_, **__: started()):
        yield

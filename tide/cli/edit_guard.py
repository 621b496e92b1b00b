"""``tide edit --guard``: every picture is drawn under guards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.guards import GuardLog


@contextmanager
def guarded(adapter: Adapter, folders: Sequence[str] | None) -> Iterator[GuardLog | None]:
    """While open, the pipeline draws under the guards in ``folders``; ``as`` gives their log, None without guards."""
    if folders is None:
        yield None
        return
    from tide.guards import guard

    with guard(adapter.pipe, *folders) as log:
        yield log


def report(log: GuardLog | None) -> dict[str, Any]:
    """What edit.json says of the guards: for each run of the pipeline, in the order of the pictures, what was met."""
    return {} if log is None else {"guards": log.rows()}

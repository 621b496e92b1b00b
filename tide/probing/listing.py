"""TIDE's own families as a table."""

from __future__ import annotations

from collections.abc import Sequence

from tide.adapters.registry import specs
from tide.adapters.spec import Spec

#: The columns of :func:`rows`.
HEADER = ("family", "draws", "models", "transformer", "pipelines", "needs diffusers")


def rows(of: Sequence[Spec] | None = None) -> list[dict[str, str | int | None]]:
    """A row for each family: its columns by name."""
    return [
        dict(
            zip(
                HEADER,
                (each.family, each.draws, each.models, each.transformer, len(each.pipelines), each.needs),
                strict=True,
            )
        )
        for each in (specs() if of is None else of)
    ]

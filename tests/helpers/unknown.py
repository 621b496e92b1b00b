"""Families without TIDE's own adapter, for tests of what proposes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tide.adapters import registry


@contextmanager
def unknown(family: str) -> Iterator[None]:
    """While open, TIDE has no adapter of this family."""

    def without(table):
        return {key: each for key, each in table.items() if each.family != family}

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_ADAPTERS", "_OF_PIPELINE"):
            patch.setattr(registry, name, without(getattr(registry, name)))
        yield

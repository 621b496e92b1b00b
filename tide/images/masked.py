"""Images whose concepts are known place by place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Masked(Protocol):
    """Images in which it is known where each concept is, as :class:`tide.scenes.samples.SceneSamples`."""

    @property
    def level_of(self) -> Mapping[str, str]: ...

    def masks(self, n: int, grid: tuple[int, ...]) -> dict[str, Tensor]: ...

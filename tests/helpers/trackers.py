"""A tracker of experiments that keeps what it is told, known to accelerate by the name "stand-in"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from accelerate.tracking import GeneralTracker, on_main_process


class StandIn(GeneralTracker):
    """``made`` holds those of a test, the first one first. ``fails`` names the methods that raise."""

    name = "stand-in"
    requires_logging_directory = False
    made: ClassVar[list[StandIn]] = []
    fails: ClassVar[set[str]] = set()

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.run_name, self.config = run_name, dict[str, Any]()
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.pictures: list[tuple[int | None, dict[str, Sequence[Any]]]] = []
        self.finished = 0
        self.made.append(self)

    @property
    def tracker(self) -> StandIn:
        return self

    def _may_fail(self, method: str) -> None:
        if method in self.fails:
            raise RuntimeError(f"{method} is\nbroken")

    @on_main_process
    def start(self) -> None:
        self._may_fail("start")

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._may_fail("log")
        self.logged.append((step, values))

    @on_main_process
    def log_images(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._may_fail("log_images")
        self.pictures.append((step, values))

    @on_main_process
    def finish(self) -> None:
        self.finished += 1

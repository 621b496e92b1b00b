"""What is measured, in which order, and how long it may take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.gpu.check import Check


@dataclass(frozen=True)
class Stage:
    """A stage: the function ``function`` of ``benchmarks.gpu.stages.<module>``, which is imported where it runs.

    ``seconds`` is the most that its process may take, ``unit_seconds`` the most for one unit of it.
    """

    module: str
    function: str
    seconds: float
    unit_seconds: float = 90.0

    def load(self) -> Callable[[Check], None]:
        found: Callable[[Check], None] = getattr(
            importlib.import_module(f"benchmarks.gpu.stages.{self.module}"), self.function
        )
        return found


STAGES: dict[str, Stage] = {
    "gpu tests": Stage("tests", "gpu_tests", 150, 150),
    "gradients": Stage("steps", "gradients", 90),
    "step": Stage("steps", "step", 90),
    "selection": Stage("selection", "selection", 70),
    "masked product": Stage("kernels", "masked_product", 45),
    "products": Stage("kernels", "products", 40),
    "gathers": Stage("kernels", "gathers", 40),
    "kernels": Stage("kernels", "kernels", 90, 45),
    "memory": Stage("steps", "memory", 60),
    "thresholds": Stage("thresholds", "thresholds", 150, 120),
    "compiled selection": Stage("selection", "compiled_selection", 60),
    "peers": Stage("peers", "peers", 150, 120),
    "timeline": Stage("timeline", "timeline", 75),
    "sanitizer": Stage("tools", "sanitizer", 180, 90),
    "ncu": Stage("tools", "ncu", 120),
    "encoders": Stage("peers", "encoders", 45),
    "dispatch": Stage("peers", "dispatch", 60),
    "grid": Stage("peers", "grid", 200),
    "kernel tests": Stage("tests", "kernel_tests", 240, 240),
    "tuning": Stage("tuning", "tuning", 430, 430),
    "step, tuned": Stage("tuning", "step_tuned", 100),
    "training": Stage("training", "training", 240, 120),
}

# One for each command of at most ten minutes. The limits of a plan may add up to more: few stages reach theirs.
PLANS: dict[str, tuple[str, ...]] = {
    "first": ("gpu tests", "gradients", "step", "selection", "masked product", "products", "gathers", "kernels"),
    "second": (
        "kernel tests",
        "compiled selection",
        "peers",
        "thresholds",
        "timeline",
        "sanitizer",
        "memory",
        "ncu",
        "encoders",
        "dispatch",
        "grid",
    ),
    "third": ("tuning", "step, tuned"),
    "last": ("training",),
}
PLANS["all"] = tuple(name for plan in list(PLANS.values()) for name in plan)

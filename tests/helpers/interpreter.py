"""Triton's interpreter at two thirds of its time."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once() -> None:
    """Spares the interpreter searches that find nothing.

    A launch replaces the builtins of `triton.language`, for which it goes through all members. Each call of a device
    function in the kernel does so again, although all builtins are replaced by then. One of them tells.
    """
    search = interpreter._patch_builtin
    sample: dict[Any, str] = {}

    def patch(package: Any, *rest: Any) -> None:
        if package not in sample:
            names = (name for name in dir(package) if tl.core.is_builtin(getattr(package, name, None)))
            sample[package] = next(names, "")
        if tl.core.is_builtin(getattr(package, sample[package], None)):
            search(package, *rest)

    interpreter._patch_builtin = patch

"""What ahead-of-time compilation needs to know about a kernel: one record for each specialisation in use.

Each file of kernels ends with a list ``AOT`` of records for every architecture of `ARCHS`; `collect` joins them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch

from tide_kernels.triton.configs import OPTIONS, Config

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
_MODULES = (
    "modulate",
    "prune",
    "select",
    "threshold",
    "threshold_histogram",
    "threshold_gradient",
    "gather",
    "layout",
    "transpose",
    "product",
    "dense",
    "masked_gradient",
    "encode",
    "encoder_gradients",
    "loss",
    "modulation_gradients",
    "code_terms",
)
# The dtypes of matrix products, and the precision of their operands.
PRECISIONS = ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"))
TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Spec:
    """One specialisation of a kernel, in the terms of `triton.compiler.ASTSource`."""

    name: str  # of the kernel, dtype and shape, for reports
    arch: str  # one of ARCHS
    kernel: Any  # a triton.JITFunction
    signature: dict[str, str]  # the type of each argument that is not a constexpr
    constexprs: dict[str, Any]
    options: dict[str, int]  # num_warps, num_stages and, where given, maxnreg
    aligned: tuple[str, ...]  # arguments that are multiples of 16: all pointers, and sizes where they are
    whole: bool = True  # False if `without` left arguments out


def spec(
    name: str,
    arch: str,
    kernel: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    config: Config,
    aligned: tuple[str, ...] = (),
) -> Spec:
    """A record whose blocks and launch options come from ``config``."""
    blocks = {name: value for name, value in config.items() if name.isupper() and name in kernel.arg_names}
    pointers = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    return Spec(
        name=name,
        arch=arch,
        kernel=kernel,
        signature=signature,
        constexprs={**blocks, **constexprs},
        options={name: config[name] for name in OPTIONS if name in config},
        aligned=pointers + aligned,
    )


def without(record: Spec, *names: str, **constants: Any) -> Spec:
    """The record with the arguments ``names`` None and others as in ``constants``: other branches are compiled."""
    constexprs = {**record.constexprs, **dict.fromkeys(names), **constants}
    told = [f"without {' '.join(names)}"] * bool(names) + [f"{name}={value}" for name, value in constants.items()]
    return replace(
        record,
        name=" ".join([record.name, *told]),
        signature={name: kind for name, kind in record.signature.items() if name not in constexprs},
        constexprs=constexprs,
        aligned=tuple(name for name in record.aligned if name not in constexprs),
        whole=False,
    )


def collect() -> list[Spec]:
    """The records of all kernels, one for each architecture and name."""
    # By name: the package's attributes of these names are functions.
    modules = (importlib.import_module(f"tide_kernels.triton.{name}") for name in _MODULES)
    return list({(record.arch, record.name): record for module in modules for record in module.AOT}.values())

"""Lower bounds: of each kernel by arithmetic, and of a step by this machine's own products, copies and gathers.

`kernel_floors` divides what `benchmarks.work` counts by the ceilings of a device, given or measured.

`step_floors` times the parts of a step in the same run. A step in the dense regime needs five products and the
selection; one in the sparse regime the encoder's product, the selection and three gathers. On a CPU, whose caches
serve the gathers, the sparse floor is only the product and the selection, which any exact TopK has to do. A
selection's floor is reading and writing its chunk once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import add

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import time_of
from benchmarks.probes import gather_bandwidth
from benchmarks.shapes import Shape
from benchmarks.work import BY_TWO_PRODUCTS, KERNELS, REGIMES, Case, Work, gather, parts, step_kernels

# The share of the L2 that a gathered table can use; the rest holds what streams past.
_L2_SHARE = 2 / 3


@dataclass(frozen=True)
class Ceilings:
    """The highest rates of a device, measured on large sizes."""

    flops: float  # of matrix products in the compute dtype, a second
    memory: float  # bytes a second to and from device memory
    l2: float  # bytes of the L2
    gathers: float  # bytes a second of rows gathered from the L2
    issue: float = 9e11  # instructions of a warp a second: 132 multiprocessors of 4 schedulers at 1.7 GHz


# Products and copies as measured once; the rate of gathers is assumed.
CEILINGS = {
    "h200": Ceilings(790e12, 4.3e12, 60e6, 5.5e12),
    "h100": Ceilings(798e12, 3.0e12, 50e6, 5.5e12),
}


@dataclass(frozen=True)
class Floor:
    """The least seconds of a kernel, and what they are made of."""

    seconds: float
    bound: str  # what limits it: products, memory or gathers; "parts" for a sequence of kernels
    work: Work

    def __add__(self, other: Floor) -> Floor:
        return Floor(self.seconds + other.seconds, "parts", self.work + other.work)


def floor_of(work: Work, ceilings: Ceilings) -> Floor:
    """The largest of the times that its products, its streams and its gathers take alone.

    A gathered row comes from the L2 with the probability that the part of the table that fits has; the others come
    from memory. What fits into the L2 as a whole may have stayed there, so it streams at the L2's rate.
    """
    usable = ceilings.l2 * _L2_SHARE
    hits = min(1.0, usable / work.table) if work.table else 1.0
    stays = work.streamed <= usable and not work.gathered
    times = {
        "products": work.flops / ceilings.flops,
        "memory": work.streamed / (max(ceilings.gathers, ceilings.memory) if stays else ceilings.memory),
        "gathers": work.gathered * (hits / ceilings.gathers + (1 - hits) / ceilings.memory),
    }
    bound = max(times, key=lambda name: times[name])
    return Floor(times[bound], bound, work)


def kernel_floor(name: str, case: Case, ceilings: Ceilings) -> Floor:
    """The floor of one kernel, or of a sequence that `benchmarks.work.parts` knows."""
    return reduce(add, (floor_of(work, ceilings) for work in parts(name, case)))


def kernel_floors(
    shape: Shape, ceilings: Ceilings, *, regime: str | None = None, all_terms: bool = False, itemsize: int = 2
) -> dict[str, Floor]:
    """The floor of every kernel by name, those of the other regime too.

    ``regime`` (default: the one whose step has the lower floor) decides the dtype of the loss's gradient and the form
    of "aux" and "code_sums", ``all_terms`` whether the loss writes the error; ``itemsize``: bytes of the compute dtype.
    """
    case = Case(shape, regime or lower_regime(shape, ceilings), all_terms, itemsize)
    return {name: kernel_floor(name, case, ceilings) for name in (*KERNELS, BY_TWO_PRODUCTS, "aux")}


def lower_regime(shape: Shape, ceilings: Ceilings) -> str:
    """The regime whose step has the lower floor."""
    return min(REGIMES, key=lambda regime: model_floor(Case(shape, regime), ceilings))


def model_floor(case: Case, ceilings: Ceilings) -> float:
    """Seconds of a step: the sum of the floors of its kernels."""
    return sum(kernel_floor(name, case, ceilings).seconds for name in step_kernels(case))


@dataclass(frozen=True)
class StepFloor:
    """Measured seconds of a step's parts."""

    regime: str
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def fastest(runs: list[Callable[[], object]], device: torch.device) -> float:
    """The median time of the fastest of several ways to do the same thing."""
    return min(time_of(run, device).median for run in runs)


def linears(x: Tensor, W: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """PyTorch's ways to compute ``x W^T + b`` on this device."""
    found: dict[str, Callable[[], Tensor]] = {"linear": lambda: F.linear(x, W, b)}
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # PyTorch gives float32 to MKL, which is not the fastest on every processor.
        found["oneDNN linear"] = lambda: torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
    return found


@cache
def encoder_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """The encoder's product with its bias."""
    x = torch.randn(shape.n_tokens, shape.d_model, device=device).to(dtype)
    W = torch.randn(shape.n_latents, shape.d_model, device=device).to(dtype)
    b = torch.zeros(shape.n_latents, device=device, dtype=dtype)
    return fastest(list(linears(x, W, b).values()), device)


@cache
def product_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """The other products of the dense regime: decode, and the gradient of a weight."""
    z = torch.randn(shape.n_tokens, shape.n_latents, device=device, dtype=dtype)
    W = torch.randn(shape.n_latents, shape.d_model, device=device).to(dtype)
    rows = torch.randn(shape.n_tokens, shape.d_model, device=device).to(dtype)
    return {"decode": time_of(lambda: z @ W, device).median, "weight": time_of(lambda: z.T @ rows, device).median}


@cache
def select_seconds(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Reading and writing the pre-activations once."""
    pre = torch.zeros(shape.n_tokens, shape.n_latents, device=device, dtype=dtype)
    out = torch.empty_like(pre)
    return time_of(lambda: out.copy_(pre), device).median


@cache
def step_floors(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[StepFloor, StepFloor]:
    """The floors of the dense and of the sparse regime."""
    encode, select = encoder_seconds(shape, device, dtype), select_seconds(shape, device, dtype)
    products = product_seconds(shape, device, dtype)
    dense = StepFloor(
        "dense",
        {
            "encode": encode,
            "select": select,
            "decode": products["decode"],
            "d latents": encode,  # the same shape as the encoder's
            "d weights": 2 * products["weight"],
        },
    )
    sparse = {"encode": encode, "select": select}
    if device.type != "cpu":
        # decode, and two for the weights' gradients; the timed step has no modulation, whose gradient is a fourth
        moved = 3 * gather(Case(shape, "sparse", itemsize=dtype.itemsize)).gathered
        sparse["gathers"] = moved / gather_bandwidth(shape.n_latents, shape.d_model, shape.k, device, dtype)
    return dense, StepFloor("sparse", sparse)


def step_floor(shape: Shape, device: torch.device, dtype: torch.dtype) -> StepFloor:
    """The lower of the two."""
    return min(step_floors(shape, device, dtype), key=lambda floor: floor.seconds)

"""A performance model of a training step: the floor and the expected time of each kernel. Nothing here is measured.

``python -m benchmarks.model --device h200 --shape 16384,1152,18432,922`` prints a line for each kernel of the step,
whose modulation is trained too.
Floors come from `benchmarks.floors`: the least bytes and operations over the ceilings of the device. Expected times are
estimates, to be confirmed or refuted by the first measurement: a floor over an assumed efficiency or, where a kernel
is likely bound by the rate of its instructions, their count over that rate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from benchmarks.floors import CEILINGS, Ceilings, Floor, kernel_floor, lower_regime, model_floor
from benchmarks.shapes import Shape
from benchmarks.table import markdown, megabytes, milliseconds
from benchmarks.work import BY_GROUP, BY_TWO_PRODUCTS, REGIMES, Case, step_kernels

# Assumed shares of the floor's rate. cuBLAS: at these shapes, of its rate for large squares. Triton on Hopper: products
# without tensor descriptors and warp specialisation. By group: a tile of 64 columns, with a second accumulator.
_CUBLAS, _TRITON, _BY_GROUP, _STREAM, _GATHER, _WALK = 0.88, 0.65, 0.30, 0.85, 0.70, 0.60
_EFFICIENCY = {
    "pre_activations": _CUBLAS,
    "decode_dense": _CUBLAS,
    "add_product_": _CUBLAS,
    BY_TWO_PRODUCTS: _CUBLAS,
    "masked_gradient": _TRITON,
    BY_GROUP: _BY_GROUP,
    "gather": _GATHER,
    "backward_latents": _WALK,
    "aux": _TRITON,
}
# Counted in the SASS of the selection: instructions of a warp for 32 elements, over all passes of a row; and the share
# of the issue rate that code with as many dependent steps reaches.
_SELECT_INSTRUCTIONS, _ISSUE_SHARE = 37.5, 0.8
# Kernels too small to have a line of their own (casts, sums of parts, the terms), and the seconds that each takes.
_SMALL_KERNELS, _SMALL_SECONDS = {"dense": 60, "sparse": 120}, 2e-6


@dataclass(frozen=True)
class Line:
    """A kernel of a step. ``expected``: estimated seconds; ``basis``: what the estimate rests on."""

    name: str
    floor: Floor
    expected: float
    basis: str


def expected(name: str, case: Case, floor: Floor, ceilings: Ceilings) -> tuple[float, str]:
    """The estimated seconds of a kernel, and what the estimate rests on."""
    share = _EFFICIENCY.get(name, _STREAM)
    seconds, basis = floor.seconds / share, f"{share:.2f} of the floor's rate"
    if name in ("keep_top_", "select"):
        shape = case.shape
        instructions = shape.n_tokens * shape.n_latents / 32 * _SELECT_INSTRUCTIONS
        issued = instructions / (ceilings.issue * _ISSUE_SHARE)
        if issued > seconds:
            return issued, f"{_SELECT_INSTRUCTIONS} instructions an element of a warp"
    return seconds, basis


def lines(case: Case, ceilings: Ceilings, encoder_gradients: str = BY_TWO_PRODUCTS) -> list[Line]:
    """The kernels of a step in their order. The encoder's gradients are taken by two products, as they are until a
    measurement says otherwise, or `BY_GROUP`."""
    found = []
    for name in step_kernels(case, encoder_gradients):
        floor = kernel_floor(name, case, ceilings)
        found.append(Line(name, floor, *expected(name, case, floor, ceilings)))
    return found


def overhead(case: Case) -> float:
    """The estimated seconds of what has no line of its own."""
    return _SMALL_KERNELS[case.regime] * _SMALL_SECONDS


def report(case: Case, ceilings: Ceilings, encoder_gradients: str = BY_TWO_PRODUCTS) -> str:
    """The table of a step, its total, and the least floor: that of a step with the encoder's gradients by groups."""
    found = lines(case, ceilings, encoder_gradients)
    rows = [
        [
            line.name,
            f"{line.floor.work.flops / 1e9:.0f}",
            megabytes(line.floor.work.streamed),
            megabytes(line.floor.work.gathered),
            line.floor.bound,
            milliseconds(line.floor.seconds),
            milliseconds(line.expected),
            line.basis,
        ]
        for line in found
    ]
    small = f"{_SMALL_KERNELS[case.regime]} of {_SMALL_SECONDS * 1e6:.0f} us"
    rows.append(["small kernels", "", "", "", "", milliseconds(0), milliseconds(overhead(case)), small])
    floor = sum(line.floor.seconds for line in found)
    total, least = sum(line.expected for line in found) + overhead(case), model_floor(case, ceilings)
    rows.append(["total", "", "", "", "", milliseconds(floor), milliseconds(total), ""])
    rows.append(["least", "", "", "", "", milliseconds(least), "", f"expected: {total / least:.2f} of the least"])
    header = ["kernel", "GFLOP", "MB", "gathered MB", "bound by", "floor ms", "expected ms (estimate)", "because"]
    terms = "all terms" if case.all_terms else "squared error"
    return f"{case.shape}, {case.regime}, {terms}: estimates, not measured\n\n{markdown(header, rows)}"


def shape_of(text: str) -> Shape:
    """``N,d,n,k``. Raises ValueError for anything else."""
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise ValueError(f"--shape {text}: give tokens,width,latents,active as in 16384,1152,18432,922") from None
    if min(shape.n_tokens, shape.d_model, shape.k) < 1 or shape.k > shape.n_latents:
        raise ValueError(f"--shape {text}: sizes are at least 1, and at most all latents are active")
    return shape


def ceilings_of(device: str | None, given: list[str]) -> Ceilings:
    """A device's ceilings, with those given as NAME=VALUE in their place. Raises ValueError for a name that is unknown
    or missing, or a value that is not a positive number."""
    names = {field.name for field in fields(Ceilings)}
    values: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            values[name] = float("nan")
        if name not in names or not 0 < values[name] < float("inf"):
            raise ValueError(f"--ceilings {text}: give NAME=VALUE with a name of {', '.join(sorted(names))}, a second")
    if device is not None:
        return replace(CEILINGS[device], **values)
    try:
        return Ceilings(**values)
    except TypeError:
        raise ValueError(f"give --device {' or '.join(CEILINGS)}, or --ceilings for all of its rates") from None


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=CEILINGS, help="whose ceilings to use")
    parser.add_argument(
        "--ceilings", nargs="+", default=[], metavar="NAME=VALUE", help="measured ones, as memory=4.2e12"
    )
    parser.add_argument("--shape", required=True, metavar="N,d,n,k", help="tokens, width, latents, active latents")
    parser.add_argument("--terms", choices=("mse", "all"), default="mse", help="of the loss (default: mse)")
    parser.add_argument("--regime", choices=REGIMES, help="default: the one with the lower floor")
    parser.add_argument("--by-group", action="store_true", help="the encoder's gradients by groups, in one product")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        shape, ceilings = shape_of(options.shape), ceilings_of(options.device, options.ceilings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    case = Case(shape, options.regime or lower_regime(shape, ceilings), options.terms == "all")
    print(report(case, ceilings, BY_GROUP if options.by_group else BY_TWO_PRODUCTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())

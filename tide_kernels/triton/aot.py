"""Compiles the kernels ahead of time, without a GPU, and checks the results.

``python -m tide_kernels.triton.aot`` takes one record of each kernel for sm_90 and a sample for the other
architectures; ``--all`` takes the whole table. It fails if a kernel does not compile, spills registers, needs
more shared memory than there is (Triton compiles such kernels silently), drops a NaN in a float maximum
or minimum, adds floats atomically, in an order that changes from run to run, or overwrites what an asynchronous
product still reads. `benchmarks.aot` compares the figures with committed ones.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tide_kernels.triton import assembly, buffers, occupancy
from tide_kernels.triton.launch import INTERPRETED
from tide_kernels.triton.specs import ARCHS, Spec, collect

_TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_FLOATS = r"(?:f16x2|f16|bf16x2|bf16|f32|f64)"
_EXTREMUM = re.compile(rf"\b(?:max|min)((?:\.\w+)*)\.{_FLOATS}\b")
_FLOAT_ATOMIC = re.compile(rf"\b(?:red|atom)\.[\w.:]*add[\w.:]*\.{_FLOATS}\b")


@dataclass(frozen=True)
class Report:
    """The outcome of compiling one record."""

    name: str
    arch: str
    options: dict[str, int]
    registers: int = 0  # of a thread
    spills: int = 0  # bytes of a thread; on ROCm, registers
    shared: int = 0  # bytes of a program
    programs: int = 0  # on a multiprocessor at once
    loops: assembly.Loops = field(default_factory=assembly.Loops)
    buffers: tuple[tuple[int, ...], ...] = ()  # of the operands of each product in the innermost loop
    seconds: float = 0.0
    complaints: tuple[str, ...] = ()


def compile_spec(spec: Spec) -> Any:
    """The compiled kernel of a record."""
    names = list(spec.kernel.arg_names)
    source = ASTSource(
        fn=spec.kernel,
        signature={name: spec.signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in spec.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in spec.aligned},
    )
    return triton.compile(source, target=_TARGETS[spec.arch], options=dict(spec.options))


def examine(spec: Spec) -> Report:
    """Compiles a record and judges the outcome."""
    begin = time.perf_counter()
    try:
        kernel = compile_spec(spec)
    except Exception as error:  # the compiler may raise anything, and that is a finding
        return Report(spec.name, spec.arch, spec.options, complaints=(f"does not compile: {_cause(error)}",))
    if spec.arch.startswith("gfx"):
        registers, spills = _resources_of_amdgcn(kernel.asm["amdgcn"])
    else:
        registers, spills = _resources_of_cubin(kernel.asm["cubin"])
    shared = int(kernel.metadata.shared)
    followed = buffers.follow(kernel.asm["ttgir"])
    complaints = [*_complaints_about_ptx(kernel.asm.get("ptx", "")), *sorted(followed.races)]
    if spills:
        complaints.append(f"spills {spills} {'registers' if spec.arch.startswith('gfx') else 'bytes a thread'}")
    if shared > (limit := occupancy.SHARED_LIMIT[spec.arch]):
        complaints.append(f"needs {shared} bytes of shared memory, {spec.arch} has {limit}")
    return Report(
        spec.name,
        spec.arch,
        spec.options,
        registers,
        spills,
        shared,
        occupancy.programs(spec.arch, registers, shared, kernel.metadata.num_warps),
        assembly.read(kernel.asm["ptx" if "ptx" in kernel.asm else "amdgcn"]),
        followed.buffers(),
        time.perf_counter() - begin,
        tuple(complaints),
    )


def _cause(error: BaseException) -> str:
    """What the first of a chain of errors says: the others show who called the function in which it occurred."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (" ".join(str(error).split()) or type(error).__name__)[-300:]


def _complaints_about_ptx(ptx: str) -> Iterator[str]:
    if dropping := {found[0] for found in _EXTREMUM.finditer(ptx) if "NaN" not in found[1].split(".")}:
        yield f"drops NaN in {', '.join(sorted(dropping))}"
    if atomics := set(_FLOAT_ATOMIC.findall(ptx)):
        yield f"adds floats atomically in {', '.join(sorted(atomics))}"


def _resources_of_cubin(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and its bytes of stack and local memory, which these kernels use only for spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if not found:
        raise RuntimeError(f"{tool.name} printed no resource usage: {usage[:200]}")
    return max(int(row[0]) for row in found), max(int(row[1]) + int(row[2]) for row in found)


def _resources_of_amdgcn(assembly: str) -> tuple[int, int]:
    """Vector registers of a thread, and how many of them are spilled."""
    counts = (re.findall(rf"\.{name}:\s+(\d+)", assembly) for name in ("vgpr_count", "vgpr_spill_count"))
    registers, spills = (max(map(int, found)) for found in counts)
    return registers, spills


def sample(specs: Sequence[Spec]) -> list[Spec]:
    """One record of each kernel for sm_90, and the one with the most arguments None; for each other architecture, one
    of every third kernel, a different third each."""
    by_kernel: dict[str, dict[str, list[Spec]]] = {}
    for spec in specs:
        by_kernel.setdefault(spec.kernel.__name__, {}).setdefault(spec.arch, []).append(spec)
    others = [arch for arch in ARCHS if arch != "sm_90"]
    chosen = []
    for i, records in enumerate(by_kernel.values()):
        for arch, candidates in records.items():
            if arch == "sm_90" or others.index(arch) == i % len(others):
                chosen.append(candidates[i % len(candidates)])
        if (barest := max(records["sm_90"], key=_left_out)) is not records["sm_90"][i % len(records["sm_90"])]:
            chosen.append(barest)
    return chosen


def _left_out(record: Spec) -> int:
    return sum(value is None for value in record.constexprs.values())


def _examine_at(place: int) -> Report:
    return examine(collect()[place])


def examine_all(specs: Sequence[Spec], processes: int) -> Iterator[Report]:
    """The reports in order, each as soon as it is ready."""
    if processes == 1:
        yield from map(examine, specs)
        return
    # Kernels cannot be sent to other processes; their positions in the whole table can.
    place = {id(record): i for i, record in enumerate(collect())}
    places = [place[id(spec)] for spec in specs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_examine_at, places)


HEADER = (
    f"{'arch':7} {'kernel':44} {'warps':>5} {'stages':>6} {'registers':>9} {'spills':>6} {'shared':>7} {'barriers':>8} "
    f"{'s':>6}"
)


def row(report: Report) -> str:
    """A line under HEADER."""
    numbers = (report.options.get("num_warps", 0), report.options.get("num_stages", 0))
    sizes = f"{report.registers:9} {report.spills:6} {report.shared:7} {report.loops.barriers:8} {report.seconds:6.1f}"
    return f"{report.arch:7} {report.name[:44]:44} {numbers[0]:5} {numbers[1]:6} {sizes}"


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tide_kernels.triton.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every record instead of one of each kernel")
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS), help="only these architectures")
    parser.add_argument("--kernel", help="only records whose names contain this")
    parser.add_argument("--processes", type=int, default=1, help="how many compile at once (default: 1)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if INTERPRETED:
        print("kernels are defined for Triton's interpreter: unset TRITON_INTERPRET to compile them", file=sys.stderr)
        return 2
    specs = collect() if options.all else sample(collect())
    specs = [s for s in specs if s.arch in options.arch and (options.kernel or "") in s.name]
    if not specs:
        print("no record matches --arch and --kernel", file=sys.stderr)
        return 2
    print(f"Triton {triton.__version__}\n{HEADER}")
    failed = 0
    for report in examine_all(specs, max(1, options.processes)):
        failed += bool(report.complaints)
        print(row(report), flush=True)
        for complaint in report.complaints:
            print(f"        FAILED: {complaint}", flush=True)
    print(f"{len(specs) - failed} of {len(specs)} records passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

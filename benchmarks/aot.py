"""The table of ahead-of-time figures: what the compiler makes of every kernel, compared with what is committed.

``python -m benchmarks.aot`` compiles every record without a GPU, checks it (`tide_kernels.triton.aot`) and fails where
a figure is worse than in ``benchmarks/results/aot/triton-VERSION.json``: fewer programs fit on a multiprocessor, or
there are more spills, more shared memory, more barriers in the hot loop or in all loops, fewer buffers of an operand,
or other instructions of products. ``--write`` accepts the figures as they are. Triton's version decides the figures,
so each version has its own table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import triton

from benchmarks import work
from benchmarks.shapes import Shape
from benchmarks.table import markdown
from tide_kernels.triton import aot
from tide_kernels.triton.launch import INTERPRETED
from tide_kernels.triton.specs import ARCHS, Spec, collect

FOLDER = Path(__file__).parent / "results" / "aot"
# Of bytes and operations, unless a record's name has other sizes; few active latents where a kernel gathers.
N_TOKENS, D_MODEL, N_LATENTS, DENSITY, FEW = 16384, 1152, 18432, 0.05, 32

Figures = dict[str, Any]
Table = dict[str, dict[str, Figures]]  # by architecture and name

_WORK: dict[str, Callable[[work.Case], work.Work]] = {
    "modulate_kernel": work.modulate,
    "select_kernel": work.keep_top,
    "select_kernel compact": work.select,
    "gather_kernel": work.gather,
    "sampled_kernel": work.sampled,
    "scatter_kernel": work.scatter,
    "backward_latents_kernel": work.backward_latents,
    "product_kernel encode": work.pre_activations,
    "product_kernel add": work.add_product,
    "masked_gradient_kernel": work.masked_gradient,
    "code_sums_kernel": work.code_sums,
    "encode_kernel": work.encode,
    "encoder_gradients_kernel": work.encoder_gradients,
    "reconstruction_loss_kernel": work.reconstruction_loss,
}
_ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}


def work_of(record: Spec) -> work.Work | None:
    """Bytes and operations of a record; None where they depend on the data, for a kernel not listed above, and where
    arguments are left out."""
    name, words = record.kernel.__name__, record.name.split()
    count = _WORK.get(f"{name} {words[1]}" if len(words) > 1 else name, _WORK.get(name))
    if count is None or not record.whole:
        return None
    sizes = {letter: int(size) for letter, size in re.findall(r"\b([dn])=(\d+)", record.name)}
    n_latents = sizes.get("n", N_LATENTS)
    gathers = count in (work.gather, work.sampled, work.scatter, work.backward_latents)
    k = FEW if gathers else round(DENSITY * n_latents)
    shape = Shape(N_TOKENS, sizes.get("d", D_MODEL), n_latents, k)
    itemsize = next((_ITEMSIZE[word] for word in words if word in _ITEMSIZE), 2)
    return count(work.Case(shape, "sparse" if gathers else "dense", itemsize=itemsize))


def figures(record: Spec, report: aot.Report) -> Figures:
    """What the table says about a record."""
    found = work_of(record)
    return {
        **report.options,
        "registers": report.registers,
        "spills": report.spills,
        "shared": report.shared,
        "programs": report.programs,
        "barriers": report.loops.barriers,
        "looped_barriers": report.loops.looped_barriers,
        "products": list(report.loops.products),
        "buffers": [min(sides) for sides in zip(*report.buffers, strict=True)],
        "bytes": None if found is None else found.streamed + found.gathered,
        "flops": None if found is None else found.flops,
    }


def worse(before: Figures, now: Figures) -> list[str]:
    """What became worse."""
    found = []
    if now["programs"] < before["programs"]:
        causes = ", ".join(f"{name} {before[name]} to {now[name]}" for name in ("registers", "shared"))
        found.append(f"programs on a multiprocessor {before['programs']} to {now['programs']} ({causes})")
    for name in ("spills", "shared", "barriers", "looped_barriers"):
        if now[name] > before[name]:
            found.append(f"{name.replace('_', ' ')} {before[name]} to {now[name]}")
    fewer = any(a < b for a, b in zip(now["buffers"], before["buffers"], strict=False))
    if fewer or len(now["buffers"]) < len(before["buffers"]):
        found.append(f"buffers {before['buffers']} to {now['buffers']}")
    if set(before["products"]) - set(now["products"]):
        found.append(f"products {', '.join(before['products'])} to {', '.join(now['products']) or 'none'}")
    return found


def version() -> str:
    return str(triton.__version__).split("+")[0]


def path_of(triton_version: str) -> Path:
    return FOLDER / f"triton-{triton_version}.json"


def read(path: Path) -> Table:
    """The committed table. Raises ValueError if the file holds none."""
    try:
        records = json.loads(path.read_text())["records"]
        for row in [row for found in records.values() for row in found.values()]:
            worse(row, row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a table of python -m benchmarks.aot ({error}): write it anew") from error
    return records


def write(table: Table, triton_version: str) -> None:
    """The table as JSON, a record a line, and as Markdown."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    head = {"triton": triton_version, "n_tokens": N_TOKENS, "d_model": D_MODEL, "n_latents": N_LATENTS}
    lines = [f'  "{name}": {json.dumps(value)},' for name, value in head.items()]
    archs = []
    for arch, records in sorted(table.items()):
        rows = [f"      {json.dumps(name)}: {json.dumps(records[name], sort_keys=True)}" for name in sorted(records)]
        archs.append(f'    "{arch}": {{\n' + ",\n".join(rows) + "\n    }")
    text = "\n".join(["{", *lines, '  "records": {', ",\n".join(archs), "  }", "}"]) + "\n"
    path_of(triton_version).write_text(text)
    path_of(triton_version).with_suffix(".md").write_text(_page(table, triton_version))


def _page(table: Table, triton_version: str) -> str:
    intro = (
        f"# Kernels ahead of time, Triton {triton_version}\n\n"
        "Written by `python -m benchmarks.aot --write`; nothing here was measured. Programs: on a multiprocessor at\n"
        "once. "
        "Barriers: in the hot loop, and in all loops; the hot loop is the innermost one with the most instructions of\n"
        "products, without any the longest. Buffers: in shared memory, of the left and right operand of the innermost\n"
        "loop's product. MB and GFLOP: the least that has to be moved and multiplied, by arithmetic, at\n"
        f"{N_TOKENS} tokens, d = {D_MODEL}, n = {N_LATENTS} unless the name says otherwise, 5 % of the latents active\n"
        f"({FEW} of them where the kernel gathers).\n"
    )
    header = ["kernel", "warps", "stages", "registers", "programs", "shared", "barriers", "products", "buffers", "MB"]
    parts = [intro]
    for arch, records in sorted(table.items()):
        rows = [_cells(name, row) for name, row in sorted(records.items())]
        parts.append(f"\n## {arch}\n\n{markdown([*header, 'GFLOP'], rows)}\n")
    return "".join(parts)


def _cells(name: str, row: Figures) -> list[str]:
    return [
        name,
        *(str(row[column]) for column in ("num_warps", "num_stages", "registers", "programs", "shared")),
        f"{row['barriers']}, {row['looped_barriers']}",
        ", ".join(row["products"]),
        ", ".join(map(str, row["buffers"])),
        "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.0f}",
        "" if row["flops"] is None else f"{row['flops'] / 1e9:.0f}",
    ]


def measure(records: Sequence[Spec], processes: int) -> tuple[Table, list[str]]:
    """The figures of the records, and what is wrong with some of them."""
    table: Table = {}
    wrong = []
    for record, report in zip(records, aot.examine_all(records, processes), strict=True):
        print(aot.row(report), flush=True)
        if report.complaints:
            wrong += [f"{record.arch} {record.name}: {complaint}" for complaint in report.complaints]
        else:
            table.setdefault(record.arch, {})[record.name] = figures(record, report)
    return table, wrong


def compared(table: Table, committed: Table) -> list[str]:
    """What is worse than in the committed table, or missing from it."""
    found = []
    for arch, records in table.items():
        for name, row in records.items():
            before = committed.get(arch, {}).get(name)
            if before is None:
                found.append(f"{arch} {name}: not in the committed table")
            else:
                found += [f"{arch} {name}: {what}" for what in worse(before, row)]
    return found


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument("--sample", action="store_true", help="one record of each kernel for sm_90, few for others")
    parser.add_argument("--kernel", default="", help="only records whose names contain this")
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS), help="only these architectures")
    parser.add_argument("--processes", type=int, default=1, help="how many compile at once (default: 1)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if INTERPRETED:
        print("kernels are defined for Triton's interpreter: unset TRITON_INTERPRET to compile them", file=sys.stderr)
        return 2
    whole = not options.sample and not options.kernel and len(options.arch) == len(ARCHS)
    if options.write and not whole:
        print("--write takes every record: drop --sample, --kernel and --arch", file=sys.stderr)
        return 2
    records = aot.sample(collect()) if options.sample else collect()
    records = [r for r in records if options.kernel in r.name and r.arch in options.arch]
    if not records:
        print("no record matches --arch and --kernel", file=sys.stderr)
        return 2
    path = path_of(version())
    try:
        committed = read(path) if path.exists() and not options.write else None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Triton {triton.__version__}\n{aot.HEADER}")
    table, wrong = measure(records, max(1, options.processes))
    return _conclude(table, wrong, committed, options.write)


def _conclude(table: Table, wrong: list[str], committed: Table | None, accept: bool) -> int:
    for complaint in wrong:
        print(f"FAILED: {complaint}")
    if wrong:
        return 1
    if accept:
        write(table, version())
        print(path_of(version()))
        return 0
    if committed is None:
        print(f"no table for Triton {version()} to compare with: python -m benchmarks.aot --write makes one")
        return 0
    found = compared(table, committed)
    for what in found:
        print(f"WORSE: {what}")
    if found:
        print("to accept this: python -m benchmarks.aot --write")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

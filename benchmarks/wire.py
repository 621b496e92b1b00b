"""How fast processes of this machine exchange tensors by gloo: ``python -m benchmarks.wire``.

Times an all-reduce, as data parallel training does it with gradients, and an all-to-all, as block parallel training
does it with tokens. A rank sends 2 (W - 1) / W of its bytes in the first and (W - 1) / W in the second. Writes
``benchmarks/results/wire-gloo-<date>.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from benchmarks.environment import environment
from benchmarks.measure import interleaved
from benchmarks.table import RESULTS, markdown, write

CPU = torch.device("cpu")


def exchange(rank: int, ranks: int, size: int, repetitions: int, rendezvous: str, out: str) -> None:
    """One process: times both, and as rank 0 writes their medians."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks)
    sent, received = torch.ones(size // 4), torch.empty(size // 4)
    runs = {
        "all_reduce": lambda: dist.all_reduce(sent),
        "all_to_all": lambda: dist.all_to_all_single(received, sent),
    }
    times = interleaved(runs, CPU, repetitions=repetitions, warmup=2, budget=float("inf"))
    dist.destroy_process_group()
    if rank == 0:
        write(Path(out), {name: each.record() for name, each in times.items()})


def measured(ranks: int, size: int, repetitions: int) -> dict[str, dict[str, Any]]:
    """The figures of both; ``bytes_per_second`` is what a rank sends. ``size``: bytes of a rank's tensor."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        arguments = (ranks, size, repetitions, f"{folder}/rendezvous", str(out))
        processes.spawn(exchange, args=arguments, nprocs=ranks)
        figures: dict[str, dict[str, Any]] = json.loads(out.read_text())
    sent = size * (ranks - 1) / ranks
    for name, figure in figures.items():
        figure["bytes_per_second"] = (2 if name == "all_reduce" else 1) * sent / figure["seconds"]
    return figures


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=64, help="of a rank's tensor")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / f"wire-gloo-{date.today().isoformat()}.json")
    options = parser.parse_args(given)
    figures = measured(options.ranks, options.megabytes * 10**6, options.repetitions)
    write(options.out, {**environment(CPU), "ranks": options.ranks, "megabytes": options.megabytes, "figures": figures})
    rows = [[name, f"{f['seconds'] * 1e3:.1f}", f"{f['bytes_per_second'] / 1e9:.2f}"] for name, f in figures.items()]
    print(markdown(["what", "median ms", "GB/s a rank"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

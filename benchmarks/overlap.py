"""What a live training takes a step, with the passes of the next images run beside the steps over one after the other:
``python -m benchmarks.overlap``.

The bundled pipeline, one block and eight, each with and without in turn, so that a change of the machine's speed meets
both alike. Beside them the most that an overlap could reach: the longer of passes and steps over their sum.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.environment import environment
from benchmarks.ranks import blocks, on_ranks
from benchmarks.table import markdown
from tide.devices import cores
from tide.files import read_json, write_json
from tide.messages import counted
from tide.world import World

BLOCKS = (1, 8)


def pairs(world: World, rounds: int, n_blocks: int, threads: int) -> list[list[dict[str, float]]]:
    """Seconds of a step of so many blocks, and of the learners' part of it: in each round without and with overlap."""
    torch.set_num_threads(threads)
    found: list[list[dict[str, float]]] = []
    for _ in range(rounds):
        found.append([])
        for beside in (False, True):
            with patch("tide.training.live_source.overlaps", lambda device, beside=beside: beside):
                found[-1].append(blocks(world, n_blocks, overlap=beside))
    return found


def measure(rounds: int, n_blocks: int, threads: int) -> dict[str, Any]:
    """Medians over rounds, all in one process."""
    found = on_ranks(1, pairs, rounds, n_blocks, threads)
    ratios = sorted(beside["seconds"] / alone["seconds"] for alone, beside in found)
    longer = [max(one["learners"], one["seconds"] - one["learners"]) / one["seconds"] for one, _ in found]
    return {
        "seconds of a step": {
            "one after the other": statistics.median(one["seconds"] for one, _ in found),
            "beside each other": statistics.median(two["seconds"] for _, two in found),
        },
        "ratio": {"median": statistics.median(ratios), "rounds": ratios},
        "best possible ratio": statistics.median(longer),
    }


def named(n_blocks: int, threads: int) -> str:
    return f"{counted(n_blocks, 'block')}, {counted(threads, 'thread')} on {counted(cores(), 'core')}"


def page(figures: dict[str, Any]) -> str:
    """The table of docs/scale-live.md."""
    rows = []
    for name, each in figures.items():
        of = each["seconds of a step"]
        rows.append(
            [name, f"{of['one after the other']:.2f} s", f"{of['beside each other']:.2f} s",
             f"{each['ratio']['median']:.2f}", f"{each['best possible ratio']:.2f}"]
        )  # fmt: skip
    return markdown(("a step of", "one after the other", "beside each other", "ratio", "best possible"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overlap", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of PyTorch, for each measurement")
    parser.add_argument("--out", type=Path, help="JSON file for the figures; those that are not measured stay")
    arguments = parser.parse_args()
    figures = read_json(arguments.out)["figures"] if arguments.out is not None and arguments.out.exists() else {}
    for threads, n_blocks in product(arguments.threads, BLOCKS):
        name = named(n_blocks, threads)
        figures[name] = measure(arguments.rounds, n_blocks, threads)
        print(json.dumps({name: figures[name]}), flush=True)
        if arguments.out is not None:
            write_json(arguments.out, {"machine": environment(torch.device("cpu")), "figures": figures})
    print(page(figures))


if __name__ == "__main__":
    main()

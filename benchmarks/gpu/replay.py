"""A step as a CUDA graph, as a training runs it: the host launches it once, however many kernels it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.gpu.check import Figures
from benchmarks.peers import Step
from benchmarks.table import Bar

_SUFFIX = ", replayed"


def captured(step: Step, device: torch.device) -> Callable[[], object]:
    """A replay of the step as a CUDA graph; without a GPU the step itself."""
    if device.type != "cuda":
        return step.run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    return graph.replay


def replayed(name: str) -> str:
    """The name of a contender's figure as a graph."""
    return name + _SUFFIX


def in_both_forms(bars: Callable[[Figures], list[Bar]], figures: Figures) -> list[Bar]:
    """The bars of steps that are launched kernel by kernel, and those of replays, where a step that has none counts as
    it is launched."""
    launched = {name: figure for name, figure in figures.items() if not name.endswith(_SUFFIX)}
    replays = {name: figures[replayed(name)] for name in launched if "seconds" in figures.get(replayed(name), {})}
    found = bars(launched)
    if replays:
        found += [replace(bar, what=f"replayed: {bar.what}") for bar in bars(launched | replays)]
    return found

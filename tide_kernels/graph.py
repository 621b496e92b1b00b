"""`tide_loss` with gradient buffers as a CUDA graph: one launch instead of some hundred for a call that repeats.

A graph replays the kernels of one call on the same memory, so it needs calls that differ only in the values of their
tensors. Its inputs are copied into memory of its own; weights and gradient buffers are used where they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tide_kernels.functional import tide_loss
from tide_kernels.losses import LossTerms

#: Arguments that are copied in at each call. The others are used in place.
INPUTS = ("x", "group", "scale", "shift", "dead")
#: Inputs of a row for each group, of which a call may have more or fewer.
TABLES = ("scale", "shift")
#: Calls of one kind in a row before they are captured, so that a changing k does not capture at each step.
PATIENCE = 20


class Graphs(Protocol):
    """How work is run once before it is captured, and captured."""

    def warm_up(self, work: Callable[[], LossTerms]) -> LossTerms:
        """Runs ``work`` on the stream that captures."""

    def capture(self, work: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
        """Captures ``work`` without running it: its replay, and where that leaves its result."""


class CudaGraphs:
    """`torch.cuda.graph` on a stream of its own."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], LossTerms]) -> LossTerms:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            terms = work()
        current.wait_stream(self.stream)
        for term in terms:
            term.record_stream(current)
        return terms

    def capture(self, work: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # Other threads go on copying batches: "global" would count their calls as errors of the capture.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                terms = work()
        finally:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
        return graph.replay, terms


class GraphedLoss:
    """`tide_loss` with ``gradients=``: the same arguments, the same results.

    After `PATIENCE` calls that differ only in the values of `INPUTS` the next is captured, and the calls after it are
    replayed. A call of another kind runs as ever and drops the graph. The tables ``scale`` and ``shift`` may have any
    number of groups, up to the next power of two: that many are computed, in every call, so that all have the same
    bits. Weights and buffers must stay where they are in memory. The next call overwrites the terms of a replay.

    Where capturing fails, a warning says why, once, and all calls run as ever.
    """

    def __init__(self, graphs: Callable[[], Graphs] = CudaGraphs) -> None:
        self._make = graphs
        self._graphs: Graphs | None = None
        self._kind: Any = None
        self._seen = 0
        self._captured: _Captured | None = None
        self._fails = False

    def __call__(self, x: Tensor, *, gradients: dict[str, Tensor], **arguments: Any) -> LossTerms:
        arguments["x"] = x
        inputs = {name: _padded(name, arguments[name]) for name in INPUTS if arguments.get(name) is not None}
        arguments |= inputs
        sums = {
            name: torch.zeros_like(inputs[name], dtype=gradients[name].dtype) for name in TABLES if name in gradients
        }
        buffers = {**gradients, **sums}
        kind = _kind(arguments, buffers)
        if kind != self._kind:
            self._kind, self._seen, self._captured = kind, 0, None
        self._seen += 1
        with torch.cuda.device_of(x):  # streams and captures belong to the current device; on a CPU this does nothing
            terms = self._run(arguments, inputs, buffers)
        for name, total in sums.items():
            gradients[name] += total[: len(gradients[name])]
        return terms

    def _run(self, arguments: dict[str, Any], inputs: dict[str, Tensor], buffers: dict[str, Tensor]) -> LossTerms:
        if self._captured is not None:
            return self._captured(inputs, buffers)
        if self._fails or self._seen <= PATIENCE:
            return tide_loss(gradients=buffers, **arguments)
        self._graphs = graphs = self._graphs or self._make()
        terms = graphs.warm_up(lambda: tide_loss(gradients=buffers, **arguments))
        try:
            self._captured = _Captured(graphs, arguments, inputs, buffers)
        except RuntimeError as error:
            self._fails = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"tide_loss runs without a CUDA graph: it cannot be captured ({reason})", stacklevel=4)
        return terms


class _Captured:
    """One captured call, its inputs and the gradients of the tables in memory of its own."""

    def __init__(
        self, graphs: Graphs, arguments: dict[str, Any], inputs: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> None:
        self.inputs = {
            name: torch.empty_like(each, memory_format=torch.contiguous_format) for name, each in inputs.items()
        }
        self.sums = {name: torch.zeros_like(buffers[name]) for name in TABLES if name in buffers}
        self.replay, self.terms = graphs.capture(
            lambda: tide_loss(gradients={**buffers, **self.sums}, **{**arguments, **self.inputs})
        )

    def __call__(self, inputs: dict[str, Tensor], buffers: dict[str, Tensor]) -> LossTerms:
        for name, own in self.inputs.items():
            own.copy_(inputs[name])
        for total in self.sums.values():
            total.zero_()
        self.replay()
        for name, total in self.sums.items():
            buffers[name] += total
        return self.terms


def _padded(name: str, given: Tensor) -> Tensor:
    """An input; a table with as many groups as the next power of two."""
    groups = 1 << max(0, len(given) - 1).bit_length()
    if name not in TABLES or groups == len(given):
        return given
    return torch.nn.functional.pad(given.detach(), (0, 0, 0, groups - len(given)))


def _kind(arguments: dict[str, Any], buffers: dict[str, Tensor]) -> Any:
    """All that has to be equal for a graph to serve: everything but the values of `INPUTS`."""
    device = arguments["x"].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return autocast, *(
        {name: _description(name, each) for name, each in group.items()} for group in (arguments, buffers)
    )


def _description(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    place = None if name in INPUTS else (value.data_ptr(), value.stride())
    return tuple(value.shape), value.dtype, value.device, place

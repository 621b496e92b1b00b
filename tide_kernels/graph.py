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
    """`tide_loss` with ``gradients=``, called with the same arguments and the same results.

    After `PATIENCE` calls that differ only in the values of `INPUTS` the next is captured, and the calls after it are
    replayed; a call of another kind runs as ever and drops the graph. The tables ``scale`` and ``shift`` may have any
    number of groups: the graph's have the next power of two. Weights and buffers must stay where they are in memory.
    The terms that a replay returns are overwritten by the next call.

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
        kind = _kind(arguments, gradients)
        if kind != self._kind:
            self._kind, self._seen, self._captured = kind, 0, None
        self._seen += 1
        if self._captured is not None:
            return self._captured(arguments, gradients)
        if self._fails or self._seen <= PATIENCE:
            return tide_loss(gradients=gradients, **arguments)
        return self._capture(arguments, gradients)

    def _capture(self, arguments: dict[str, Any], gradients: dict[str, Tensor]) -> LossTerms:
        """This call's result, computed as ever; the next is replayed."""
        self._graphs = self._graphs or self._make()
        terms = self._graphs.warm_up(lambda: tide_loss(gradients=gradients, **arguments))
        try:
            self._captured = _Captured(self._graphs, arguments, gradients)
        except RuntimeError as error:
            self._fails = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"tide_loss runs without a CUDA graph: it cannot be captured ({reason})", stacklevel=4)
        return terms


class _Captured:
    """One captured call."""

    def __init__(self, graphs: Graphs, arguments: dict[str, Any], gradients: dict[str, Tensor]) -> None:
        given = {name: arguments.get(name) for name in INPUTS}
        self.inputs = {name: _room(name, each) for name, each in given.items() if isinstance(each, Tensor)}
        #: Of the tables, which have more groups here than in a call.
        self.tables = {
            name: torch.zeros_like(self.inputs[name], dtype=gradients[name].dtype)
            for name in ("scale", "shift")
            if name in gradients
        }
        self.replay, self.terms = graphs.capture(
            lambda: tide_loss(gradients={**gradients, **self.tables}, **{**arguments, **self.inputs})
        )

    def __call__(self, arguments: dict[str, Any], gradients: dict[str, Tensor]) -> LossTerms:
        for name, room in self.inputs.items():
            room[: len(arguments[name])].copy_(arguments[name])
        for table in self.tables.values():
            table.zero_()
        self.replay()
        for name, table in self.tables.items():
            gradients[name] += table[: len(gradients[name])]
        return self.terms


def _groups(table: Tensor) -> int:
    """The groups that a graph has room for."""
    return 1 << (len(table) - 1).bit_length() if len(table) else 0


def _room(name: str, given: Tensor) -> Tensor:
    """Memory for an input of a graph."""
    if name not in ("scale", "shift"):
        return torch.empty_like(given, memory_format=torch.contiguous_format)
    return given.new_zeros(_groups(given), given.shape[1])


def _kind(arguments: dict[str, Any], gradients: dict[str, Tensor]) -> Any:
    """All that has to be equal for a graph to serve: everything but the values of `INPUTS`."""
    device = arguments["x"].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    described = {name: _description(name, value) for name, value in arguments.items()}
    buffers = {name: _description(name, value) for name, value in gradients.items()}
    return autocast, described, buffers


def _description(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    shape = (_groups(value), *value.shape[1:]) if name in ("scale", "shift") else tuple(value.shape)
    place = None if name in INPUTS else (value.data_ptr(), value.stride())
    return shape, value.dtype, value.device, value.requires_grad, place

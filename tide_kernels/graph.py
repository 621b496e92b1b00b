"""`tide_loss` with gradient buffers as a CUDA graph: one launch instead of some hundred for a call that repeats.

A graph replays the kernels of one call on the same memory, so it needs calls that differ only in the values of their
tensors. Its inputs are copied into memory of its own; weights and gradient buffers are used where they are.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from tide_kernels.functional import tide_loss
from tide_kernels.losses import LossTerms

#: Arguments that are copied in at each call. The others are used in place.
INPUTS = ("x", "target", "group", "scale", "shift", "dead", "threshold")
#: Inputs whose gradients arise in memory of the graph. Where they have a row for each group, a call may have more or
#: fewer rows.
TABLES = ("scale", "shift", "threshold")
#: Calls of a kind before it is captured, so that a changing k does not capture at each step.
PATIENCE = 20
#: Graphs that are kept. A training alternates between few kinds: two or three sizes of `LossOptions.dead_bucket`.
KEPT = 4
#: Kinds whose calls are counted.
COUNTED = 32


#: What calls that one graph can serve have in common.
Kind: TypeAlias = Hashable


class Graphs(Protocol):
    """How work is run once before it is captured, and captured."""

    def warm_up(self, work: Callable[[], LossTerms]) -> LossTerms:
        """Runs ``work`` on the stream that captures."""

    def capture(self, work: Callable[[], LossTerms]) -> tuple[Callable[[], None], LossTerms]:
        """Captures ``work`` without running it: its replay, and where that leaves its result."""


class CudaGraphs:
    """`torch.cuda.graph` on a stream of its own. All graphs use the same memory.

    That is sound in any order of replays: none runs beside another, and none reads what another has left.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

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
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                terms = work()
        except BaseException:
            torch.cuda.set_stream(current)  # a capture that fails leaves its own
            self._release(current.device_index)
            raise
        return graph.replay, terms

    def _release(self, device: int) -> None:
        """Ends a capture that CUDA has refused for PyTorch's allocator, too, which would never again free memory that
        two streams have used."""
        with contextlib.suppress(RuntimeError):  # CUDA did not refuse it: the allocator knows its end
            torch._C._cuda_endAllocateToPool(device, self.pool)
            torch._C._cuda_releasePool(device, self.pool)


class GraphedLoss:
    """`tide_loss` with ``gradients=``: the same arguments, the same results.

    Calls that differ only in the values of `INPUTS` are of one kind. After `PATIENCE` calls of a kind its next is
    captured, and those after it are replayed, whatever calls come between them. The graphs of the `KEPT` kinds called
    last are kept. The tables ``scale``, ``shift`` and ``threshold`` may have any number of groups, up to the next power
    of two: that many are computed, in every call, so that all have the same bits. Weights and buffers must stay where
    they are in memory: elsewhere, they make a new kind. The next call overwrites the terms of a replay.

    Where capturing fails, a warning says why, once, and the calls that are not captured yet run as ever. Calls with
    ``ranks`` always run as ever.
    """

    def __init__(self, graphs: Callable[[], Graphs] = CudaGraphs) -> None:
        self._make = graphs
        self._graphs: Graphs | None = None
        # Both by kind, the one called last at the end.
        self._seen: dict[Kind, int] = {}
        self._captured: dict[Kind, _Captured] = {}
        self._fails = False

    def __call__(self, x: Tensor, *, gradients: dict[str, Tensor], **arguments: Any) -> LossTerms:
        if arguments.get("ranks") is not None:
            return tide_loss(x, gradients=gradients, **arguments)
        arguments["x"] = x
        inputs = {name: _padded(name, arguments[name]) for name in INPUTS if arguments.get(name) is not None}
        arguments |= inputs
        sums = {
            name: torch.zeros_like(inputs[name], dtype=gradients[name].dtype) for name in TABLES if name in gradients
        }
        buffers = {**gradients, **sums}
        with torch.cuda.device_of(x):  # streams and captures belong to the current device; on a CPU this does nothing
            terms = self._run(arguments, inputs, buffers)
        for name, total in sums.items():
            found = total if total.dim() < 2 else total[: len(gradients[name])]
            gradients[name].copy_(found) if arguments.get("start") is not None else gradients[name].add_(found)
        return terms

    def _run(self, arguments: dict[str, Any], inputs: dict[str, Tensor], buffers: dict[str, Tensor]) -> LossTerms:
        kind = _kind(arguments, buffers)
        if (captured := self._captured.pop(kind, None)) is not None:
            self._captured[kind] = captured
            return captured(inputs, buffers)
        if self._fails or self._count(kind) <= PATIENCE:
            return tide_loss(gradients=buffers, **arguments)
        return self._capture(kind, arguments, inputs, buffers)

    def _count(self, kind: Kind) -> int:
        """How many calls of a kind there were, with this one."""
        self._seen[kind] = self._seen.pop(kind, 0) + 1
        _drop_oldest(self._seen, COUNTED)
        return self._seen[kind]

    def _capture(
        self, kind: Kind, arguments: dict[str, Any], inputs: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> LossTerms:
        """Runs a call as ever and captures it for those to come."""
        self._graphs = graphs = self._graphs or self._make()
        terms = graphs.warm_up(lambda: tide_loss(gradients=buffers, **arguments))
        rooms = {name: self._room(name, each) for name, each in inputs.items()}
        try:
            self._captured[kind] = _Captured(graphs, arguments, rooms, buffers)
        except RuntimeError as error:
            self._fails = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"tide_loss runs without a CUDA graph: it cannot be captured ({reason})", stacklevel=5)
        else:
            del self._seen[kind]
            # Not before the capture: the memory that all graphs use must belong to one of them.
            _drop_oldest(self._captured, KEPT)
        return terms

    def _room(self, name: str, given: Tensor) -> Tensor:
        """Memory that calls copy an input into: a graph's with the same shape, if there is one."""
        for captured in self._captured.values():
            room = captured.inputs.get(name)
            if room is not None and _description(name, room) == _description(name, given):
                return room
        return torch.empty_like(given, memory_format=torch.contiguous_format)


class _Captured:
    """One captured call, with the memory that its inputs are copied into and the gradients of the tables arise in."""

    def __init__(
        self, graphs: Graphs, arguments: dict[str, Any], inputs: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> None:
        self.inputs = inputs
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


def _drop_oldest(kept: dict[Kind, Any], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]


def _padded(name: str, given: Tensor) -> Tensor:
    """An input; a table with as many groups as the next power of two."""
    if name not in TABLES or given.dim() < 2:
        return given
    groups = 1 << max(0, len(given) - 1).bit_length()
    if groups == len(given):
        return given
    # No token has the further rows. Thresholds are positive, for what is divided by them and for their checks.
    value = 1.0 if name == "threshold" else 0.0
    return torch.nn.functional.pad(given.detach(), (0, 0, 0, groups - len(given)), value=value)


def _kind(arguments: dict[str, Any], buffers: dict[str, Tensor]) -> Kind:
    """All that has to be equal for a graph to serve: everything but the values of `INPUTS`."""
    device = arguments["x"].device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return autocast, *(
        frozenset((name, _description(name, each)) for name, each in group.items()) for group in (arguments, buffers)
    )


def _description(name: str, value: Any) -> Hashable:
    if not isinstance(value, Tensor):
        return value if isinstance(value, Hashable) else id(value)  # which `tide_loss` will refuse
    place = None if name in INPUTS else (value.data_ptr(), value.stride())
    return value.shape, value.dtype, value.device, place

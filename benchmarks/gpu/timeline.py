"""The kernels of a step on the device's own clock, and the gaps between them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import synchronise

# Products and copies of the vendor's libraries and of PyTorch, which are not ours to change.
LIBRARY = re.compile(r"gemm|nvjet|cutlass|xmma|cublas|at::native|Memcpy|Memset|aten::", re.IGNORECASE)


@dataclass(frozen=True)
class Event:
    """A kernel's run: when it began and ended, in seconds."""

    name: str
    begin: float
    end: float


def record(run: Callable[[], object], device: torch.device, repetitions: int) -> list[Event]:
    """What the device ran, in the order of its beginning. The run has to be warm."""
    on_gpu = device.type == "cuda"
    synchronise(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        for _ in range(repetitions):
            run()
        synchronise(device)
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [
        event
        for event in profiled.profiler.kineto_results.events()
        if event.device_type() == wanted
        and event.duration_ns() > 0
        # On a CPU operators call one another; those of PyTorch stand for kernels.
        and (on_gpu or event.name().startswith("aten::"))
    ]
    first = min((event.start_ns() for event in events), default=0)  # a float cannot hold nanoseconds since 1970
    found = ((event.name(), event.start_ns() - first, event.duration_ns()) for event in events)
    return [Event(name, begin / 1e9, (begin + taken) / 1e9) for name, begin, taken in sorted(found, key=_begin)]


def _begin(event: tuple[str, int, int]) -> int:
    return event[1]


@dataclass(frozen=True)
class Timeline:
    """Summary of the events of ``repetitions`` runs."""

    repetitions: int
    span: float  # seconds from the first kernel's beginning to the last one's end
    busy: float  # seconds in which at least one kernel ran
    kernels: dict[str, tuple[int, float]]  # runs and seconds by name, the slowest first
    gaps: list[tuple[float, str, str]]  # seconds, and the kernels before and after; the longest first

    @property
    def share(self) -> float:
        """Of the span, the part in which a kernel ran."""
        return self.busy / self.span if self.span else 0.0

    def slowest(self, count: int) -> list[str]:
        """The names of our own slowest kernels."""
        return [name for name in self.kernels if not LIBRARY.search(name)][:count]


def summary(events: list[Event], repetitions: int) -> Timeline:
    if not events:
        raise RuntimeError("the profiler recorded no kernel")
    totals: dict[str, tuple[int, float]] = {}
    first = events[0]
    gaps, busy, covered, last = [], 0.0, first.begin, first.name
    for event in events:
        count, seconds = totals.get(event.name, (0, 0.0))
        totals[event.name] = count + 1, seconds + event.end - event.begin
        if event.begin > covered:
            gaps.append((event.begin - covered, last, event.name))
        if event.end > covered:
            busy += event.end - max(event.begin, covered)
            covered, last = event.end, event.name
    ordered = dict(sorted(totals.items(), key=lambda item: -item[1][1]))
    return Timeline(repetitions, covered - first.begin, busy, ordered, sorted(gaps, reverse=True))

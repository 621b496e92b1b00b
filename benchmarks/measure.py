"""Time and memory of a run, on a CPU or a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], object]

_AHEAD = 10_000_000  # cycles, about five milliseconds: how far the host runs ahead of a queued run
_FLUSHED = 2**28  # bytes, more than any cache holds


@dataclass(frozen=True)
class Timing:
    """Seconds of the repetitions of one run."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """The distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    def record(self) -> dict[str, float | int]:
        return {"seconds": self.median, "spread": self.spread, "repetitions": len(self.seconds)}


@dataclass(frozen=True)
class Peak:
    """Bytes of a run. ``extra`` is the peak, not counting what was there before or what the run leaves behind (a step
    leaves its gradients); ``total`` includes the latter."""

    extra: int
    total: int

    def record(self) -> dict[str, int]:
        return {"peak_extra_bytes": self.extra, "peak_total_bytes": self.total}


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flush(device: torch.device) -> None:
    """Pushes everything out of a GPU's cache."""
    if device.type == "cuda":
        torch.empty(_FLUSHED, dtype=torch.int8, device=device).zero_()


def seconds(run: Run, device: torch.device, before: Run | None = None, queued: bool = False) -> float:
    """One run's time; ``before`` prepares it and is not timed.

    ``queued``: on a GPU, the run is launched while the device is busy with a wait, so that the time is that of the
    device and not of the host that launches. Else it is what a caller sees who waits before and after.
    """
    if before is not None:
        before()
    synchronise(device)
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if queued:
            torch.cuda._sleep(_AHEAD)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def interleaved(
    runs: dict[str, Run],
    device: torch.device,
    *,
    repetitions: int = 7,
    warmup: int = 2,
    budget: float = 60.0,
    before: dict[str, Run] | None = None,
    queued: bool = False,
) -> dict[str, Timing]:
    """Times of several runs, with interleaved repetitions, so that a machine that slows down slows all of them.

    Stops after at least three repetitions once ``budget`` seconds are spent.
    """
    prepare = before or {}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for _ in range(warmup):
        for name, run in runs.items():
            seconds(run, device, prepare.get(name), queued)
    for i in range(repetitions):
        if i >= 3 and time.perf_counter() - begin > budget:
            break
        for name, run in runs.items():
            taken[name].append(seconds(run, device, prepare.get(name), queued))
    return {name: Timing(tuple(values)) for name, values in taken.items()}


def time_of(
    run: Run,
    device: torch.device,
    *,
    repetitions: int = 7,
    warmup: int = 2,
    before: Run | None = None,
    queued: bool = True,
) -> Timing:
    """The times of a single run; on a GPU those of the device alone unless ``queued`` is False."""
    prepare = {} if before is None else {"run": before}
    options: dict[str, Any] = {"repetitions": repetitions, "warmup": warmup, "before": prepare, "queued": queued}
    return interleaved({"run": run}, device, **options)["run"]


def peak(run: Run, device: torch.device, before: Run | None = None) -> Peak:
    """The memory of one run, as counted by the allocator. The run has to be warm; ``before`` prepares it."""
    if before is not None:
        before()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        most, after = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return Peak(most - max(after, held), most - held)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    return _peak_of(event.nbytes() for event in sorted(events, key=lambda e: e.start_ns()))


def _peak_of(changes: Iterable[int]) -> Peak:
    """The memory from the allocator's steps, in order; negative steps free memory."""
    held = most = 0
    for change in changes:
        held += change
        most = max(most, held)
    return Peak(most - max(held, 0), most)

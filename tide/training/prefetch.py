"""Batches read ahead by a thread, and their copy to a GPU while it computes."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, NamedTuple

import torch
from torch import Tensor

from tide.activations.stream import B
from tide.adapters.gate import Gate
from tide.devices import cores
from tide.errors import TideError
from tide.ranks import launched

#: How often, in seconds, a waiting thread looks whether it has to end.
_LOOK = 0.1


class _Failure(NamedTuple):
    error: BaseException


@dataclass
class _Read(Generic[B]):
    batch: B
    #: The point of the thread's stream at which a batch on a GPU is complete.
    reached: torch.cuda.Event | None


def prefetched(
    batches: Iterable[B],
    depth: int,
    *,
    pin: bool = False,
    device: torch.device | None = None,
    gate: Gate | None = None,
) -> Generator[B, None, None]:
    """The same batches in the same order, at most ``depth`` of them read ahead by a thread.

    With ``pin`` what is in a CPU's memory is pinned, so that a GPU copies it while it computes. With the ``device`` on
    which batches arise, if it is a GPU, the thread computes on a stream of its own. With the ``gate`` of a transformer
    that ``batches`` run, each batch is a background pass. Where a tap is open from the beginning, or autocast is on,
    which a thread would not know of, none runs.

    What ``batches`` raises is raised here, after the batches before it. The thread starts with the first batch and ends
    when the iterator is closed, after the batch that it is reading.
    """
    if gate is not None and (gate.is_tapped or any(map(torch.is_autocast_enabled, ("cpu", "cuda")))):
        yield from batches
        return
    reader: _Reader[B] = _Reader(batches, depth, pin, _Lane(device), gate)
    atexit.register(reader.end)  # Python must not end in the middle of a pass
    reader.thread.start()
    try:
        while (batch := reader.next()) is not None:
            yield batch
    finally:
        reader.end()
        atexit.unregister(reader.end)


def overlaps(device: torch.device) -> bool:
    """Whether passes on ``device`` in a thread make a training faster: on a GPU, and on a CPU where PyTorch's threads,
    those of other ranks as well, leave as many cores idle as they use."""
    if device.type == "cpu":
        here = 1 if (found := launched()) is None else found.here
        return 2 * torch.get_num_threads() * here <= cores()
    return device.type == "cuda"


class _Reader(Generic[B]):
    """The thread that reads, and what it shares with the one that takes."""

    def __init__(self, batches: Iterable[B], depth: int, pin: bool, lane: _Lane, gate: Gate | None) -> None:
        self.batches: Iterator[B] = iter(batches)
        self.pin, self.lane, self.gate = pin, lane, gate
        self.room = threading.Semaphore(depth)
        self.read: SimpleQueue[_Read[B] | _Failure | None] = SimpleQueue()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, name="prefetch", daemon=True)

    def run(self) -> None:
        while self._has_room() and self._read_one():
            pass

    def _has_room(self) -> bool:
        """Whether there was room before the taker went away."""
        while not self.ended.is_set():
            if self.room.acquire(timeout=_LOOK):
                return True
        return False

    def _read_one(self) -> bool:
        """Whether there was one."""
        turn = nullcontext(True) if self.gate is None else self.gate.passing(self.ended.is_set)
        with turn as granted:
            item = self._item() if granted else None
            self.read.put(item)  # before a tap can be opened, in which nobody would wait for it
        return isinstance(item, _Read)

    def _item(self) -> _Read[B] | _Failure | None:
        try:
            with self.lane.entered():
                batch = next(self.batches, None)
                if batch is None:
                    return None
                return _Read(batch.mapped(_pinned) if self.pin else batch, self.lane.reached())
        except BaseException as error:
            return _Failure(error)

    def next(self) -> B | None:
        """The next batch; None after the last."""
        if self.gate is not None and self.gate.is_tapped_here and self.read.empty():
            raise TideError(
                "a live stream waits for a tap of its own pipeline; close the tap before the next batch is asked for, "
                "or open it before the stream"
            )
        item = self.read.get()
        if isinstance(item, _Failure):
            raise item.error
        if item is None:
            return None
        self.room.release()
        return self.lane.taken(item.batch, item.reached)

    def end(self) -> None:
        self.ended.set()
        self.thread.join()


def _pinned(tensor: Tensor) -> Tensor:
    """Of a tensor in a CPU's memory; activations that were collected on a GPU are where they are needed."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


class _Lane:
    """The CUDA stream on which a thread computes, beside that of the thread that takes its batches. Without a GPU there
    is none, and nothing is done."""

    def __init__(self, device: torch.device | None) -> None:
        self.stream: torch.cuda.Stream | None = None
        if device is not None and device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            # What the passes read, such as weights, may be on its way.
            self.stream.wait_stream(torch.cuda.current_stream(device))

    def entered(self) -> AbstractContextManager[None]:
        """In the thread: its stream, and with it the device, is the current one."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def reached(self) -> torch.cuda.Event | None:
        """In the thread: the point after all that it has launched."""
        return None if self.stream is None else self.stream.record_event()

    def taken(self, batch: B, reached: torch.cuda.Event | None) -> B:
        """In the other thread: the batch, which its current stream reads after that point."""
        if self.stream is None or reached is None:
            return batch
        computing = torch.cuda.current_stream(self.stream.device)
        computing.wait_event(reached)
        return batch.mapped(lambda tensor: _used_by(tensor, computing) if tensor.is_cuda else tensor)


class Mover:
    """Moves batches to a device; to a GPU on a stream of its own, so that the copy overlaps with the running step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: B) -> B:
        if self._copies is None:
            return batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            moved = batch.to(self.device, non_blocking=True)
        computing.wait_stream(self._copies)
        # The memory is of the stream that copied: it may be used again only after the step has read it.
        return moved.mapped(lambda tensor: _used_by(tensor, computing))


def _used_by(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor

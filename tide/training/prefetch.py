"""Batches read ahead by a thread, and their copy to a GPU while it computes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Full, Queue

import torch
from torch import Tensor

from tide.activations.stream import B

#: How often, in seconds, a waiting thread looks whether it has to end.
_LOOK = 0.1


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def prefetched(batches: Iterable[B], depth: int, *, pin: bool = False) -> Iterator[B]:
    """The same batches in the same order, at most ``depth`` of them read ahead by a thread.

    With ``pin`` what is in a CPU's memory is pinned, so that a GPU copies it while it computes. What ``batches`` raises
    is raised here, after the batches before it. The thread starts with the first batch and ends when the iterator is
    closed.
    """
    queue: Queue[B | _Failure | None] = Queue(depth)
    ended = threading.Event()
    thread = threading.Thread(target=_fill, args=(queue, ended, batches, pin), name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        ended.set()
        thread.join()


def _fill(
    queue: Queue[B | _Failure | None],
    ended: threading.Event,
    batches: Iterable[B],
    pin: bool,
) -> None:
    try:
        for batch in batches:
            if not _put(queue, ended, batch.mapped(_pinned) if pin else batch):
                return
        _put(queue, ended, None)
    except BaseException as error:
        _put(queue, ended, _Failure(error))


def _pinned(tensor: Tensor) -> Tensor:
    """Of a tensor in a CPU's memory; activations that were collected on a GPU are where they are needed."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def _put(queue: Queue[B | _Failure | None], ended: threading.Event, item: B | _Failure | None) -> bool:
    """Whether there was room before the reader went away."""
    while not ended.is_set():
        try:
            queue.put(item, timeout=_LOOK)
            return True
        except Full:
            pass
    return False


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

"""The processes that ``torchrun`` started for one run: what they agree on, and what they say of one that is missing."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tide.devices import use_own_gpu
from tide.errors import TideError
from tide.ranks import Launched, launched
from tide_kernels import Ranks
from tide_kernels.ranks import Group

#: Seconds that a rank waits for the others, unless the environment says otherwise.
WAIT = "TIDE_WAIT"
_DEFAULT_WAIT = 600.0
#: Seconds that a rank gives the others to say that they wait as well, or that they live.
_GRACE = 3.0
#: Seconds between two of a rank's signs of life.
_BEAT = 0.5
#: The keys under which a rank says, in the store that all share, that it lost its group, and that it lives.
_SEEN, _PULSE = "tide/seen/{}", "tide/pulse/{}"

T = TypeVar("T")


class World:
    """All ranks of a run, this one among them; a process alone is a world of one, in which nothing is exchanged.

    Attributes:
        number: of this rank, from 0.
        count: of all ranks.
    """

    def __init__(self, number: int = 0, count: int = 1, group: dist.ProcessGroup | None = None) -> None:
        self.number, self.count = number, count
        self._group = group

    @property
    def group(self) -> Group:
        """The process group of these ranks: that of all processes, unless another was given."""
        return Group((self._group or dist.group.WORLD) if self.several else None)

    @property
    def tokens(self) -> World:
        """Of these ranks those that divide a batch's tokens, this one among them: all, unless it is a
        :class:`Grid`."""
        return self

    @property
    def latents(self) -> World:
        """Of these ranks those that divide the latents, this one among them: it alone, unless it is a :class:`Grid`."""
        return World()

    @property
    def several(self) -> bool:
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this rank is the one that logs, and writes what there is one of."""
        return self.number == 0

    def ranks(self, n_tokens: int, n_latents: int) -> Ranks:
        """The ranks as they share a batch of ``n_tokens`` rows and a model of ``n_latents``."""
        tokens, latents = self.tokens.group, self.latents.group
        return Ranks(tokens.group, n_tokens, latents.group, n_latents if latents.several else None)

    def gathered(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors, of one shape, one after the other along the first dimension."""
        if not self.several:
            return tensor
        return self.group.gathered(tensor).flatten(0, 1)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of the ranks' tensors, in memory of its own if there are several."""
        return self.group.summed(tensor)

    def least(self, number: int) -> int:
        """The smallest of the ranks' numbers."""
        return min(self.said(number))

    def said(self, value: T) -> list[T]:
        """What each rank says, in their order: numbers, texts, lists, and plain data that are made of them."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group.group)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that either succeeds on all ranks or raises on all of them.

        What one rank raises ends the others with a :class:`~tide.errors.TideError` that names it. The block itself
        exchanges nothing.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        messages = self.said("" if failed is None else " ".join(str(failed).split()) or type(failed).__name__)
        if failed is not None:
            raise failed
        for rank, message in enumerate(messages):
            if message:
                raise TideError(f"rank {rank} of {self.count} has ended: {message}")

    @contextmanager
    def watched(self, kept: Callable[[], str]) -> Iterator[None]:
        """Turns the loss of another rank while the block runs into a :class:`~tide.errors.TideError` that names it;
        ``kept`` says what is on disk."""
        with _alive(self.number):
            try:
                yield
            except (RuntimeError, dist.DistError) as error:
                if not self.several or not _of_a_collective(error):
                    raise
                raise TideError(f"{self._missing(error)}; {kept()}") from error

    def _missing(self, error: Exception) -> str:
        """Who does not answer: the ranks that do not say within a few seconds that they, too, have lost the group, and
        of which nothing else is heard. One that is waited for too long may well live."""
        timed_out = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        absent = _absent(self.number, self.count, living=not timed_out)
        numbers = ", ".join(map(str, absent))
        who = f"rank{'s' * (len(absent) > 1)} {numbers} of {self.count}" if absent else f"another of {self.count} ranks"
        if timed_out:
            return f"waited {wait_limit():g} s for {who} (the limit is set by {WAIT}, in seconds)"
        said = " ".join(str(error).split())[:120]
        return f"no answer from {who} ({said}); the message of the one that ended, or of its machine, says why"


class Grid(World):
    """All ranks of a run, which divide the latents of one model among ``across`` of them at a time.

    Rank r is in row ``r // across`` and column ``r % across``. The ranks of a row have the same tokens and divide the
    latents, those of a column hold the same latents and divide the tokens. All ranks form it at once.

    Raises :class:`~tide.errors.TideError` for a number of ranks that ``across`` does not divide.
    """

    def __init__(self, number: int, count: int, across: int) -> None:
        if count % across:
            raise TideError(
                f"shard_latents = {across} does not divide {count} rank{'s' * (count > 1)}; start a multiple of "
                f"{across} by torchrun, or leave it off"
            )
        super().__init__(number, count)
        self._places = torch.arange(count).view(-1, across)
        self._groups = [_group_among(groups) for groups in (self._places.T.tolist(), self._places.tolist())]
        self._tokens = World(number // across, count // across, self._groups[0])
        self._latents = World(number % across, across, self._groups[1])
        self._meshes: dict[str, DeviceMesh] = {}

    @property
    def tokens(self) -> World:
        return self._tokens

    @property
    def latents(self) -> World:
        return self._latents

    def mesh(self, device: torch.device) -> DeviceMesh:
        """The rows and columns, for tensors on a kind of device."""
        if device.type not in self._meshes:
            names = ("tokens", "latents")
            self._meshes[device.type] = DeviceMesh.from_group(
                self._groups, device.type, self._places, mesh_dim_names=names
            )
        return self._meshes[device.type]


def _group_among(groups: list[list[int]]) -> dist.ProcessGroup:
    """That of the groups which this rank is in."""
    found, _ = dist.new_subgroups_by_enumeration(groups, timeout=timedelta(seconds=wait_limit()))
    assert found is not None
    return found


@contextmanager
def _alive(number: int) -> Iterator[None]:
    """While the block runs, a thread tells the others that this rank lives, whatever it is waiting for."""
    if not dist.is_initialized():
        yield
        return
    # Of its own: the rank may be waiting in the other one.
    store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
    ended = threading.Event()

    def beat() -> None:
        with suppress(RuntimeError, dist.DistError):  # the store went with its rank
            while not ended.wait(_BEAT):
                store.set(_PULSE.format(number), str(time.monotonic_ns()))

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_GRACE)


def _absent(number: int, count: int, *, living: bool) -> list[int]:
    """The ranks that do not answer through the store by which the group was formed; with ``living`` those that live are
    not among them, even if they have not noticed anything yet."""
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(_SEEN.format(number), "1")
        end = time.monotonic() + _GRACE
        missing = list(range(count))
        before = {rank: _pulse(store, rank) for rank in missing}
        while missing and time.monotonic() < end:
            time.sleep(0.1)
            missing = [rank for rank in missing if not store.check([_SEEN.format(rank)])]
            if living:
                missing = [rank for rank in missing if _pulse(store, rank) == before[rank]]
    except (RuntimeError, ValueError, dist.DistError):  # the store went with its rank
        return []
    return missing


def _pulse(store: dist.Store, rank: int) -> bytes | None:
    """A rank's last sign of life."""
    name = _PULSE.format(rank)
    return store.get(name) if store.check([name]) else None


def _of_a_collective(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in said for word in ("gloo", "nccl", "connection closed"))


def wait_limit() -> float:
    """Seconds that a rank waits for the others (``TIDE_WAIT``). Raises :class:`~tide.errors.TideError` for a value that
    is none."""
    said = os.environ.get(WAIT, "")
    try:
        seconds = float(said or _DEFAULT_WAIT)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise TideError(f"{WAIT} = {said!r} is not a number of seconds; give one above 0, such as 600")
    return seconds


def current(shard_latents: int = 1) -> World:
    """The ranks that torchrun started; a :class:`Grid` if so many of them divide the latents of one model. The first
    call forms their group, which takes all of them; a process that was started alone gets a world of one.

    A device "cuda" is that of the local rank afterwards. Raises :class:`~tide.errors.TideError` if the ranks do not
    find each other or cannot be divided, and if there are more on a machine than it has GPUs.
    """
    found = launched()
    if found is None:
        return World() if shard_latents == 1 else Grid(0, 1, shard_latents)
    if not dist.is_initialized():
        _check_gpus(found)
        use_own_gpu()
        # A lost rank is to be reported by `World.watched`: NCCL's watchdog may abort communicators, so that what waits
        # for them fails, but not the process (CleanUpOnly of torch's ProcessGroupNCCL.hpp; the default ends it).
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=wait_limit()))
        except (RuntimeError, ValueError, dist.DistError) as error:
            line = " ".join(str(error).split())[:200]
            raise TideError(
                f"the {found.count} ranks do not find each other ({line}); start them by torchrun"
            ) from error
    return World(found.number, found.count) if shard_latents == 1 else _grid(found.number, found.count, shard_latents)


@functools.cache
def _grid(number: int, count: int, across: int) -> Grid:
    """Formed once: process groups stay until all are ended."""
    return Grid(number, count, across)


def _check_gpus(found: Launched) -> None:
    """NCCL has no two ranks on one GPU."""
    here, gpus = max(found.here, found.local + 1), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < gpus < here:
        raise TideError(
            f"local rank {found.local} is one of {here} on a machine with {gpus} GPU{'s' * (gpus > 1)}; start at most "
            f"{gpus} on each (--nproc-per-node {gpus}), or hide the GPUs to train on CPUs (CUDA_VISIBLE_DEVICES=)"
        )


def leave() -> None:
    """Ends the group, if there is one."""
    _grid.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


class StopVote:
    """Whether any rank was asked to stop: each step's answer is known one step later, so that nobody waits for it.

    All ranks call :meth:`asked` as often and get the same answers, so they stop after the same step.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._pending: tuple[dist.Work, Tensor] | None = None

    def asked(self, here: bool) -> bool:
        """Says whether this rank is asked to stop; returns what all ranks said in the last call."""
        if not self.world.several:
            return here
        before, found = self._pending, False
        if before is not None:
            before[0].wait()
            found = bool(before[1])
        flag = torch.tensor([int(here)])
        self._pending = (dist.all_reduce(flag, dist.ReduceOp.MAX, async_op=True), flag)
        return found

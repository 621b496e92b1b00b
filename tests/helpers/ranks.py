"""Processes of a `torch.distributed` group on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
import torch.distributed as dist


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0, wait: float = 120.0
) -> list[Any]:
    """What ``function(*args)``, of a module, returns in each of so many new processes, which are a gloo group of one
    thread each. An error in one of them, or none done after ``timeout`` seconds, fails the test. ``wait``: seconds
    after which a collective operation fails."""
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["tide.training"])  # its imports take longer than most tests
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (sender, function, rank, world_size, f"{folder}/store", wait, dict(os.environ), args)
            processes.append(context.Process(target=_run, args=arguments, daemon=True))
            processes[-1].start()
            sender.close()
            pipes.append(receiver)
        try:
            return [_received(rank, pipe, timeout) for rank, pipe in enumerate(pipes)]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
                process.join()


def as_under_torchrun() -> None:
    """Sets the variables by which torchrun tells a process of `run_ranks` which one it is, all of them on a machine."""
    number, count = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}


def _received(rank: int, pipe: Connection, timeout: float) -> Any:
    if not pipe.poll(timeout):
        pytest.fail(f"rank {rank} has not answered after {timeout:g} s")
    try:
        result, error = pickle.loads(pipe.recv_bytes())
    except EOFError:
        pytest.fail(f"rank {rank} ended without an answer")
    if error is not None:
        pytest.fail(f"rank {rank}: {error}")
    return result


def _run(
    pipe: Connection,
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    store: str,
    wait: float,
    environment: dict[str, str],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)  # a server's processes have the one that it was started with
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # the name of this machine may lead nowhere
    result = error = None
    try:
        files = dist.FileStore(store, world_size)
        dist.init_process_group("gloo", store=files, rank=rank, world_size=world_size, timeout=timedelta(seconds=wait))
        result = function(*args)
        dist.destroy_process_group()
    except Exception:
        error = traceback.format_exc()
    # By value: tensors would otherwise be handed over as shared memory, which ends with this process.
    pipe.send_bytes(pickle.dumps((result, error)))

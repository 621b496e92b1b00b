"""Signals to trainings of two ranks by the command line: what they say, how they end, and what resuming makes of it.

``python -m tests.helpers.signal_ranks FOLDER`` prints what happened as JSON. Ranks are forks of this process, which has
imported everything and started no thread; torchrun starts its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch

from tests.helpers.kill_ranks import RANKS, ended, same, weights
from tests.helpers.trainings import batch
from tide.activations.writer import StoreWriter
from tide.cli.app import main as tide
from tide.training import learner, stopping

STEPS = 120
OPTIONS = ["--sae", "--steps", str(STEPS), "--buffer-rows", "1024"]
OPTIONS += ["--set", "n_latents=32", "k=3", "batch_tokens=64", "checkpoint_every=40", "log_every=40"]
#: Of two ranks, one has two blocks to save and the other a single one.
BLOCKS = {"data parallel": (2,), "block parallel": (2, 5, 7)}
#: Whom a signal is sent to.
SIGNALS = {
    "SIGTERM to one rank": (signal.SIGTERM, [1]),
    "SIGINT to all ranks": (signal.SIGINT, [0, 1]),
}
#: Seconds that each block takes to save in one of the trials, and fewer within which two signals are one there.
SLOW, APART = 0.6, 0.3


def write_stores(folder: Path, blocks: tuple[int, ...]) -> Path:
    for block in blocks:
        info = {"pipeline": None, "family": "pixart", "block": block, "tensor": "output"}
        with StoreWriter(folder / f"block-{block}", info=info) as writer:
            writer.add(batch(block, rows=4096))
    return folder if len(blocks) > 1 else folder / f"block-{blocks[0]}"


def words(store: Path, out: Path, *more: str) -> list[str]:
    return ["train", "--store", str(store), "--out", str(out), *OPTIONS, *more]


def started(arguments: list[str], logs: Path, *, slow: bool = False) -> list[int]:
    """The processes of the ranks, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs.mkdir(parents=True, exist_ok=True)
    pids = []
    for number in range(RANKS):
        if (pid := os.fork()) == 0:
            code = 70
            try:
                sys.stdout, sys.stderr = (open(logs / f"{name}-{number}", "w") for name in ("stdout", "stderr"))
                os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(RANKS)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                if slow:
                    save_slowly()
                code = tide(arguments)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    return pids


def save_slowly() -> None:
    stopping.APART = APART
    save = learner.Learner.save_between_steps

    def slowly(own: learner.Learner) -> None:
        time.sleep(SLOW)
        save(own)

    learner.Learner.save_between_steps = slowly  # type: ignore[method-assign]


def await_state(out: Path, blocks: tuple[int, ...]) -> None:
    """Until the training has saved its first steps."""
    of = [out / f"block-{block}/resume/state.safetensors" for block in blocks]
    wanted = [out / "resume/step-40"] if len(blocks) == 1 else of
    end = time.monotonic() + 60
    while not all(each.exists() for each in wanted):
        if time.monotonic() > end:
            raise TimeoutError(f"{wanted[0]} is not there")
        time.sleep(0.005)


def said(logs: Path, name: str = "stderr") -> list[str]:
    return [(logs / f"{name}-{number}").read_text() for number in range(RANKS)]


def signalled(store: Path, out: Path, blocks: tuple[int, ...], number: int, ranks: list[int]) -> dict[str, Any]:
    pids = started(words(store, out), out.parent / "logs")
    await_state(out, blocks)
    for rank in ranks:
        os.kill(pids[rank], number)
    return {"codes": ended(pids), "said": said(out.parent / "logs")}


def passed_on(store: Path, out: Path, blocks: tuple[int, ...]) -> dict[str, Any]:
    """A signal to all ranks, which save slowly; who is left gets it once more when the first has ended, as torchrun's
    processes do."""
    pids = started(words(store, out), out.parent / "logs", slow=True)
    await_state(out, blocks)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    first, status = os.wait()
    for pid in pids:
        if pid != first:
            os.kill(pid, signal.SIGTERM)
    codes = {first: os.waitstatus_to_exitcode(status)}
    left = [pid for pid in pids if pid != first]
    codes |= dict(zip(left, ended(left), strict=True))
    return {"codes": [codes[pid] for pid in pids], "said": said(out.parent / "logs")}


def by_torchrun(store: Path, out: Path, blocks: tuple[int, ...]) -> dict[str, Any]:
    """SIGTERM to torchrun, which passes it on."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "-m", "tide"]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen([*launcher, *words(store, out)], **pipes, text=True)
    await_state(out, blocks)
    process.terminate()
    stderr = process.communicate(timeout=60)[1]
    return {"codes": [process.returncode], "said": [stderr]}


def trial(store: Path, folder: Path, blocks: tuple[int, ...], kind: str, whole: Path) -> dict[str, Any]:
    """A training that is signalled, and resumed to its end."""
    out = folder / "out"
    if kind in SIGNALS:
        found = signalled(store, out, blocks, *SIGNALS[kind])
    else:
        found = (by_torchrun if kind == "SIGTERM to torchrun" else passed_on)(store, out, blocks)
    resumed = ended(started(words(store, out, "--resume"), folder / "resumed"))
    return {**found, "resumed": resumed, "same": same(weights(out), weights(whole))}


def main(folder: Path) -> dict[str, Any]:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for number, (mode, blocks) in zip(count(), BLOCKS.items()):
        store, whole = write_stores(folder / f"store-{number}", blocks), folder / f"whole-{number}"
        if any(ended(started(words(store, whole), folder / f"logs-{number}"))):
            raise RuntimeError(said(folder / f"logs-{number}"))
        kinds = [*SIGNALS, "SIGTERM to torchrun", *(["SIGTERM passed on"] if len(blocks) > 1 else [])]
        found[mode] = {kind: trial(store, folder / f"{number} {kind}", blocks, kind, whole) for kind in kinds}
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))

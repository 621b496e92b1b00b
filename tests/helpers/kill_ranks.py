"""Kills ranks of trainings at random moments, resumes, and compares with what was never killed.

``python -m tests.helpers.kill_ranks FOLDER KILLS SEED [MODE ...]`` prints what happened as JSON, in all modes or in
those. Ranks are forks of this process, which has imported everything and started no thread, so that a trial takes a
second or two.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tests.helpers.trainings import MODULATION, ROWS, D, batch, config
from tide.activations.block_batch import BlockBatch
from tide.activations.shared_stream import SharedStream, Shares
from tide.activations.stream import LiveStream
from tide.errors import TideError
from tide.sae import TIDE
from tide.training import shared_state
from tide.training.job import Job, Jobs
from tide.training.to_checkpoint import train_blocks
from tide.world import Grid, World

RANKS, STEPS, BLOCKS = 2, 24, (2, 5, 7)
OPTIONS = {"activation": "jumprelu", "steps": STEPS, "checkpoint_every": 2, "log_every": 4, "centre": True}
#: Who dies: one rank or all of them; during a checkpoint, or whenever.
VICTIMS = ("one rank", "all ranks", "one rank in a checkpoint", "all ranks in a checkpoint")
MODES = ("data parallel", "block parallel", "latents divided")


def collect(seed: int, start: int, stop: int) -> Iterator[BlockBatch]:
    """An image a pass, of as many rows as a batch has."""
    for sample in range(start, stop):
        time.sleep(0.002)  # so that a kill can come while a rank waits for another's tokens
        yield BlockBatch({block: batch(seed % 1000 + 31 * sample + block) for block in BLOCKS})


def jobs(mode: str, world: World, blocks: Sequence[int] = BLOCKS) -> Jobs:
    blocks = blocks if mode == "block parallel" else blocks[:1]
    shares = Shares(world, {b: i % world.count for i, b in enumerate(blocks)} if len(blocks) > 1 else None)
    sizes = {"n_samples": 12, "rows_per_sample": ROWS, "per_pass": 1, "buffer_rows": 4 * ROWS, "seed": 1}

    def collected(seed: int, start: int, stop: int = sizes["n_samples"]) -> Iterator[BlockBatch]:
        return (BlockBatch({b: each[b] for b in blocks}) for each in collect(seed, start, stop))

    shared = world.several
    stream = SharedStream(collected, ROWS, shares=shares, **sizes) if shared else LiveStream(collected, ROWS, **sizes)
    made = config().changed(OPTIONS | {"shard_latents": world.latents.count})
    of = {}
    for block in filter(shares.trained_here, blocks):
        model = TIDE(made.model_config(D, MODULATION, family="pixart", block=block), among=world.latents)
        of[block] = Job(made, model, iter, {"block": block})
    return Jobs(made, of, stream.from_step, shares)


def rank(number: int, mode: str, out: Path, store: Path) -> int:
    """What one forked rank does; its exit code."""
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(store), RANKS), rank=number, world_size=RANKS, timeout=timedelta(seconds=20)
    )
    write = shared_state.dcp.save

    def marked(*arguments: Any, **more: Any) -> Any:
        (out.parent / "in a checkpoint").touch()
        return write(*arguments, **more)

    shared_state.dcp.save = marked
    world = Grid(number, RANKS, RANKS) if mode == "latents divided" else World(number, RANKS)
    try:
        train_blocks(jobs(mode, world), out, resume=True, say=lambda _: None)
    except TideError as error:
        (out.parent / f"said-{number}").write_text(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def started(mode: str, out: Path) -> list[int]:
    store = out.parent / f"store-{time.monotonic_ns()}"
    (out.parent / "in a checkpoint").unlink(missing_ok=True)
    pids = []
    for number in range(RANKS):
        if (pid := os.fork()) == 0:
            code = 70
            try:
                sys.stderr = open(out.parent / f"stderr-{number}", "a")
                code = rank(number, mode, out, store)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        pids.append(pid)
    return pids


def ended(pids: list[int], limit: float = 60.0) -> list[int]:
    """Exit codes, those of signals negative; what has not ended by then is killed, which counts as -100."""
    codes: dict[int, int] = {}
    end = time.monotonic() + limit
    while len(codes) < len(pids):
        for pid in pids:
            if pid in codes:
                continue
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                codes[pid] = -100
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def weights(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {str(file.relative_to(out)): load_file(file) for file in sorted(out.rglob("model.safetensors"))}


def same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> bool:
    return one.keys() == other.keys() and all(
        one[file].keys() == other[file].keys()
        and all(torch.equal(one[file][name], other[file][name]) for name in one[file])
        for file in one
    )


def trial(mode: str, victims: str, rng: random.Random, folder: Path, seconds: float) -> dict[str, Any]:
    """One training that is killed once or twice on its way, and resumed until it is finished."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out, kills, codes, hung = folder / "out", 0, [1], False
    for _ in range(rng.choice([1, 2])):
        pids = started(mode, out)
        if "checkpoint" in victims and mode != "block parallel":
            deadline = time.monotonic() + 20
            while not (folder / "in a checkpoint").exists() and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.05))
        else:
            time.sleep(rng.uniform(0.05, seconds))
        chosen = pids if "all" in victims else [rng.choice(pids)]
        for pid in chosen:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                kills += 1
            else:
                pids.remove(pid)
        hung |= -100 in ended(pids)
    for _ in range(3):
        codes = ended(started(mode, out))
        if codes == [0] * RANKS:
            break
    leftovers = [str(each.relative_to(out)) for each in out.rglob("*") if ".tmp" in each.name or each.name == ".lock"]
    return {"mode": mode, "victims": victims, "kills": kills, "codes": codes, "hung": hung, "leftovers": leftovers}


def main(folder: Path, kills: int, seed: int, modes: Sequence[str]) -> dict[str, Any]:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    rng = random.Random(seed)
    whole, seconds = {}, {}
    for mode in modes:
        out = folder / f"whole {mode}" / "out"
        out.parent.mkdir(parents=True)
        begun = time.monotonic()
        assert ended(started(mode, out)) == [0] * RANKS, mode
        seconds[mode], whole[mode] = time.monotonic() - begun, weights(out)
    done, trials = 0, []
    while done < kills:
        mode, victims = rng.choice(modes), rng.choice(VICTIMS)
        found = trial(mode, victims, rng, folder / "trial", seconds[mode])
        found["same"] = same(weights(folder / "trial/out"), whole[mode])
        trials.append(found)
        done += found["kills"]
        if not found["same"] or found["hung"] or found["leftovers"] or any(found["codes"]):
            break
    return {"kills": done, "trials": trials, "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or MODES)))

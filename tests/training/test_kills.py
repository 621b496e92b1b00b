"""`tide train` killed with -9 at random moments and before system calls, and a long one: nothing is lost or grows."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.trainings import assert_same, batch, stream, trainer
from tide.activations import StoreWriter

pytestmark = pytest.mark.slow

STEPS = 30
CALLS = ("write", "fsync", "rename", "mkdir", "rmdir", "chmod")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store"
    info = {"pipeline": "none", "family": "pixart", "block": 6, "tensor": "output"}
    with StoreWriter(path, info=info) as writer:
        for seed in range(8):
            each = batch(seed)
            each.sample += seed
            writer.add(each)
    return path


def command(store: Path, out: Path, *more: str, steps: int = STEPS) -> list[str]:
    options = ["n_latents=32", "k=3", "batch_tokens=64", "checkpoint_every=1", "log_every=1"]
    train = ["train", "--store", str(store), "--sae", "--out", str(out), "--device", "cpu", "--steps", str(steps)]
    return [sys.executable, "-m", "tide.cli", *train, "--buffer-rows", "1024", "--set", *options, *more]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    result = run(*command(store, out))
    assert result.returncode == 0, result.stderr
    return out


def finishes(store: Path, out: Path, whole: Path, steps: int = STEPS) -> None:
    result = run(*command(store, out, "--resume", steps=steps))
    assert result.returncode == 0, result.stderr
    assert_same(load_file(out / "model.safetensors"), load_file(whole / "model.safetensors"))
    histories = [json.loads((each / "training.json").read_text())["history"] for each in (out, whole)]
    assert histories[0] == histories[1]
    assert not [path for path in out.rglob(".*")]


def test_kills_at_random_moments(store, whole, tmp_path):
    """Every killed run resumes from where the one before it stopped."""
    rng = random.Random(0)
    out, environment = tmp_path / "out", {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = 0
    for _ in range(12):
        process = subprocess.Popen(command(store, out, "--resume"), env=environment, stderr=subprocess.DEVNULL)
        started = (out / "run.json").stat().st_mtime_ns if (out / "run.json").exists() else 0
        while process.poll() is None and not (
            (out / "run.json").exists() and (out / "run.json").stat().st_mtime_ns > started
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.4))
        killed += process.poll() is None
        process.kill()
        process.wait()
    assert killed >= 3
    finishes(store, out, whole)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_kills_before_system_calls(store, tmp_path):
    """Before two of each of the calls that change what is on disk, at random among those of a run of three steps.
    strace sends the signal before the call is made. (The calls of one save are all tried in test_saving.py.)"""
    rng = random.Random(1)
    steps, trace = 3, tmp_path / "trace"
    tracing = ("strace", "-f", "-qq", "--seccomp-bpf", "-o", str(trace))
    counted = run(*tracing, "-e", f"trace={','.join(CALLS)}", *command(store, tmp_path / "whole", steps=steps))
    if "ptrace" in counted.stderr.lower():
        pytest.skip("processes may not be traced here")
    assert counted.returncode == 0, counted.stderr
    calls = re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.M)
    for name in CALLS:
        for number in rng.sample(range(1, calls.count(name) + 1), 2):
            out = tmp_path / f"{name}-{number}"
            killed = run(*tracing, "-e", f"inject={name}:signal=KILL:when={number}", *command(store, out, steps=steps))
            assert killed.returncode != 0, name
            finishes(store, out, tmp_path / "whole", steps)


def test_two_thousand_steps_let_nothing_grow(tmp_path):
    """No memory, no descriptor, no thread; the state on disk stays as large as it was, but for the curves."""
    job = trainer(tmp_path, steps=2000, log_every=10, checkpoint_every=50)
    seen: dict[int, tuple[int, int, int, int]] = {}

    def watched(start: int):
        for step, each in enumerate(stream(start), start):
            if step in (500, 1990):
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                state = load_file(tmp_path / "resume" / "state.safetensors")
                size = sum(value.nbytes for name, value in state.items() if name != "record")
                seen[step] = (len(os.listdir("/dev/fd")), threading.active_count(), size, peak)
            yield each

    job.fit(watched)
    assert seen[500][:3] == seen[1990][:3]
    assert seen[1990][3] - seen[500][3] < 20 * 1024  # KiB; the curves' entries are some hundred bytes each

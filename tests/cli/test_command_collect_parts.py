"""`tide collect` in parts: by hand, as ranks of torchrun, as a Slurm array, killed at random moments."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.helpers.store_batches import assert_same_rows
from tide.activations import ActivationStore
from tide.files import lock_folder

ROOT = Path(__file__).parents[2]
#: Of the bundled pipeline, in processes of their own. One thread, as roundings depend on their number.
SCENES = ["--pipeline", "scenes", "--data", "scenes", "--batch-size", "4", "--token-fraction", "1"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))},
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """Whatever starts the tests, they are no rank of it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def command(pipeline, images, tmp_path) -> list[object]:
    options = ["--block", 3, "--batch-size", 2, "--token-fraction", "1/4"]
    return ["collect", "--pipeline", pipeline, "--data", images, *options, "--out", tmp_path / "acts"]


def test_parts_by_hand(cli, command, tmp_path):
    assert cli(*command[:-1], tmp_path / "one").code == 0
    result = cli(*command, "--part", "1/2")
    assert result.code == 0
    assert "; part 1 of 2 takes 5 images\n" in result.out
    assert result.out.splitlines()[-1].startswith("Collected 160 activations of 5 images from block 3: ")
    assert result.out.endswith(f" in {tmp_path}/acts, part 1 of 2.\n")
    assert result.err == ""
    assert cli(*command, "--part", "0/2").code == 0
    assert_same_rows(tmp_path / "acts", tmp_path / "one")


def test_a_rank_collects_its_part_and_only_the_first_speaks(cli, command, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("1", 1), ("0", 3)):
        monkeypatch.setenv("RANK", rank)
        result = cli(*command)
        assert (result.code, len(result.out.splitlines())) == (0, lines)
        assert result.out.endswith(f", part {rank} of 2.\n")
    assert ActivationStore(tmp_path / "acts").complete


def test_an_option_counts_before_the_launcher(cli, command, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert cli(*command, "--part", "0/1").code == 0
    assert [path.name for path in (tmp_path / "acts").iterdir()] == ["part-00000-of-00001"]


def test_ranks_of_a_launcher_that_names_no_part_are_refused(cli, command, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    result = cli(*command)
    assert result.code == 2
    assert "OMPI_COMM_WORLD_SIZE says that this is one of 4 processes" in result.err
    assert cli(*command, "--part", "3/4").code == 0


def test_a_part_with_nothing_to_do_says_so(cli, command, tmp_path):
    result = cli(*command, "--images", 2, "--part", "0/2")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == (
        f"{tmp_path}/acts, part 0 of 2: there are fewer passes than parts, and nothing to do."
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("0/0", "0 parts are none; give R/W with W of at least 1, such as 0/64"),
        ("2/2", "part 2 of 2 does not exist; they are 0 to 1"),
        ("1", "'1' is not a part; write it as 3/64, counted from 0"),
        ("-1/2", "'-1/2' is not a part; write it as 3/64, counted from 0"),
        ("a/b", "'a/b' is not a part; write it as 3/64, counted from 0"),
    ],
)
def test_a_part_that_is_none(cli, command, tmp_path, part, message):
    result = cli(*command, f"--part={part}")
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "acts").exists()


def test_an_error_names_the_part(cli, command, tmp_path):
    assert cli(*command, "--part", "0/2").code == 0
    result = cli(*command, "--part", "1/2", "--seed", 1)
    assert result.code == 2
    assert result.err.startswith("tide: error: part 1 of 2: ")
    assert "(seed 0, now 1); use the same options and data, or another folder\n" in result.err
    with lock_folder(tmp_path / "acts" / "part-00001-of-00002"):
        result = cli(*command, "--part", "1/2")
    assert "part 1 of 2: " in result.err
    assert "is being written by this process already" in result.err


def test_the_held_out_share_is_that_of_the_parts(cli, command, tmp_path):
    assert cli(*command, "--part", "0/2", "--hold-out", "1/4").code == 0
    assert cli(*command, "--part", "1/2").code == 2
    assert cli(*command, "--part", "1/2", "--resume").code == 0
    assert ActivationStore(tmp_path / "acts").info["hold_out"] == 0.25


def test_a_training_reads_the_parts(cli, command, pipeline, tmp_path):
    small = ["--set", "n_latents=96", "k=8", "batch_tokens=64", "--steps", 2]
    train = ["train", "--store", tmp_path / "acts", "--pipeline", pipeline, "--out", tmp_path / "tide", *small]
    assert cli(*command, "--part", "0/2").code == 0
    result = cli(*train)
    assert result.code == 2
    assert "acts is not whole: part 1 of 2 is missing or unfinished; run `tide collect --part 1/2 --res" in result.err
    assert cli(*command, "--part", "1/2").code == 0
    assert cli(*train).code == 0


# -- processes -------------------------------------------------------------------------------------------------------


def collect(out: Path, *options: str, images: int = 24) -> None:
    command = [sys.executable, "-m", "tide", "collect", *SCENES, "--images", str(images), "--block", "3", *options]
    subprocess.run([*command, "--out", str(out)], check=True, env=ENVIRONMENT, capture_output=True)


@pytest.mark.slow
def test_ranks_of_torchrun(tmp_path):
    collect(tmp_path / "one")
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "tide", "collect", *SCENES, "--images", "24", "--block", "3"]
    run = subprocess.run(
        [sys.executable, *command, "--out", str(tmp_path / "two")], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert sorted(line.rpartition(", ")[2] for line in run.stdout.splitlines()[1:]) == ["part 0 of 2.", "part 1 of 2."]
    assert_same_rows(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_script_for_slurm_arrays(tmp_path):
    """Its body, as the tasks 0, 1 and 2 of an array run it."""
    collect(tmp_path / "one")
    tide = tmp_path / "bin" / "tide"
    tide.parent.mkdir()
    tide.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tide "$@"\n')
    tide.chmod(0o755)
    environment = {**ENVIRONMENT, "PARTS": "3", "PATH": f"{tide.parent}:{os.environ['PATH']}"}
    options: Sequence[str] = [*SCENES, "--images", "24", "--block", "3", "--out", str(tmp_path / "acts")]
    for task in ("2", "0", "1"):
        array = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "0"}
        script = ["bash", str(ROOT / "scripts/collect_array.sbatch"), *options]
        subprocess.run(script, check=True, env={**environment, **array}, capture_output=True)
    assert_same_rows(tmp_path / "acts", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_parts_killed_at_random_moments_resume_alone(tmp_path):
    """Three parts at once, each killed again and again; what the others wrote stays as it is."""
    collect(tmp_path / "one", images=96)
    out, chance = tmp_path / "acts", random.Random(0)
    options = [*SCENES, "--images", "96", "--block", "3", "--resume", "--out", str(out)]

    def start(index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tide", "collect", *options, "--part", f"{index}/3"]
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for _ in range(4):
        runs = [start(index) for index in range(3)]
        while not all(list(out.glob(f"part-{i:05d}-*/.lock")) or run.poll() is not None for i, run in enumerate(runs)):
            time.sleep(0.01)
        for run in runs:
            time.sleep(chance.uniform(0, 0.7))
            run.send_signal(signal.SIGKILL)
            run.wait()
        for manifest in out.glob("part-*/manifest.json"):
            ActivationStore(manifest.parent).verify()
    for index in range(3):
        assert start(index).wait() == 0
    assert_same_rows(out, tmp_path / "one")
    assert not list(out.rglob(".*"))

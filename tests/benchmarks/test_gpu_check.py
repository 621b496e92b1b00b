"""The command: stages as processes, limits, what a second call does, what is left of a call that was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.environment import ROOT
from benchmarks.gpu import driver, plans, process
from benchmarks.gpu import record as records
from benchmarks.gpu.driver import Driver

CALL = {"date": "2026-01-02", "commit": "abc", "device": "CPU"}
NAME = f"dry-run-{date.today().isoformat()}"


def stages_of(folder: Path) -> dict:
    return json.loads((folder / f"{NAME}.json").read_text())["stages"]


def running(pid: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while running(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(pid)


def test_a_process_that_hangs_is_killed_with_its_children_at_its_limit(tmp_path):
    log, pid = tmp_path / "log", tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    lines = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    begin = time.monotonic()
    assert process.run([sys.executable, "-c", lines], log, 2, os.environ) is None
    assert time.monotonic() - begin < 20
    assert log.read_text() == "begun\n"
    assert gone(int(pid.read_text()))


def test_the_exit_code_and_the_output_come_back(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    command = [sys.executable, "-c", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"]
    assert process.run(command, log, 30, os.environ) == 5
    assert sorted(log.read_text().splitlines()) == ["before", "err", "out"]


def test_a_long_log_loses_its_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "KEPT_FIRST", 3)
    monkeypatch.setattr(process, "KEPT_LAST", 2)
    log = tmp_path / "log"
    log.write_text("earlier" + "0123456789")
    process.shorten(log, len("earlier"))
    assert log.read_text() == "earlier012\n... 5 bytes are left out ...\n89"


@pytest.fixture
def outcomes(tmp_path, monkeypatch):
    """A driver whose stages' processes end as told: each is a function of the stage's entry that returns the code."""
    path, todo = tmp_path / "check.json", []
    found = Driver(path, CALL, dry_run=True, deadline=time.monotonic() + 600)

    def run(command, log, seconds, environment):
        record = records.load(path)
        code = todo.pop(0)(records.stage(record, command[command.index("--stage") + 1]))
        records.save(path, record)
        return code

    monkeypatch.setattr(driver.process, "run", run)
    return found, todo


def unit(**more):
    return {"figures": {}, "bars": [], "notes": [], "call": 0, **more}


def finishes(entry):
    entry |= {"finished": True}
    entry["units"]["last"] = unit()
    return 0


def hangs(entry):
    entry["units"]["first"] = unit()
    entry["running"] = {"title": "second", "since": time.time(), "limit": 90}


def dies(entry):
    entry["running"] = {"title": "second", "since": time.time() - 91, "limit": 90}
    return 1


def dies_at_once(entry):
    return -signal.SIGSEGV


def test_a_stage_that_hangs_costs_only_itself(outcomes):
    check, todo = outcomes
    todo += [hangs, finishes]
    assert check.run(["step", "grid"]) == ["step"]
    entry = records.load(check.path)["stages"]["step"]
    assert entry["error"] == "it was stopped at its limit of 90 s"
    assert entry["units"] == {"first": unit(), "second": unit(error="it was stopped at its limit of 90 s")}
    assert "running" not in entry


def test_a_unit_whose_process_dies_costs_only_itself(outcomes):
    check, todo = outcomes
    todo += [dies, finishes]
    assert check.run(["step"]) == ["step"]
    entry = records.load(check.path)["stages"]["step"]
    assert list(entry["units"]) == ["second", "last"]
    assert entry["units"]["second"]["error"] == "took more than 90 s; the log shows where it was"
    assert "error" not in entry


def test_a_process_that_dies_outside_of_its_units_is_not_started_again(outcomes):
    check, todo = outcomes
    todo += [dies, dies_at_once]
    check.run(["step"])
    entry = records.load(check.path)["stages"]["step"]
    assert entry["error"] == "its process ended by SIGSEGV; the log has its last words"
    assert todo == []


def test_what_is_finished_is_not_run_again_unless_it_is_asked_for(outcomes, capsys):
    check, todo = outcomes
    todo += [finishes]
    assert check.run(["step"]) == []
    assert check.run(["step"]) == []
    assert "== step: finished before" in capsys.readouterr().out
    todo += [finishes]
    assert check.run(["step"], again=["step"]) == []
    assert todo == []


def test_no_stage_begins_after_the_time_is_up(tmp_path):
    check = Driver(tmp_path / "check.json", CALL, dry_run=True, deadline=time.monotonic())
    assert check.run(["step"]) == ["step"]
    assert records.load(check.path)["stages"]["step"]["error"] == "no time was left"


def test_the_command_runs_stages_and_a_second_call_only_what_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TIDE_RESULTS", str(tmp_path))
    assert gpu_check.main(["--dry-run", "--stages", "products"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{NAME}.{end}" for end in ("json", "log", "md")]
    capsys.readouterr()
    assert gpu_check.main(["--dry-run", "--stages", "products", "masked product"]) == 0
    printed = capsys.readouterr().out
    assert "== products: finished before" in printed
    assert "masked_gradient" in printed
    # An earlier file elsewhere serves as well.
    other = tmp_path / "other"
    options = ["--out", str(other), "--resume-from", str(tmp_path / f"{NAME}.json")]
    assert gpu_check.main(["--dry-run", "--stages", "products", *options]) == 0
    assert "== products: finished before" in capsys.readouterr().out
    assert list(stages_of(other)) == ["products", "masked product"]


def test_a_damaged_record_is_not_overwritten(tmp_path, capsys):
    path = tmp_path / f"{NAME}.json"
    path.write_text("{")
    assert gpu_check.main(["--dry-run", "--out", str(tmp_path), "--stages", "products"]) == 2
    assert f"{path} is not a record of gpu-check (" in capsys.readouterr().err
    assert path.read_text() == "{"


HANGS = """
import time
from benchmarks.gpu import plans
from benchmarks.gpu.stages import kernels
plans.STAGES["gathers"] = plans.Stage("kernels", "gathers", 60, 2)
rows = kernels._random_rows
def hangs(check, shape, unit):
    if shape.n_latents == 512:
        time.sleep(60)
    rows(check, shape, unit)
kernels._random_rows = hangs
"""


def test_a_kernel_that_hangs_costs_only_its_unit(tmp_path, planted):
    """And the log shows where it hung."""
    planted(HANGS)
    begin = time.monotonic()
    assert gpu_check.main(["--dry-run", "--out", str(tmp_path), "--stages", "gathers", "products"]) == 1
    assert time.monotonic() - begin < 55
    found = stages_of(tmp_path)
    units = found["gathers"]["units"]
    assert [title for title, each in units.items() if "error" in each] == ["170 MB table"]
    assert units["170 MB table"]["error"] == "took more than 2 s; the log shows where it was"
    assert found["gathers"]["finished"]
    assert found["products"]["finished"]
    assert "in hangs" in (tmp_path / f"{NAME}.log").read_text()


KILLED = """
import os, time
from pathlib import Path
from benchmarks.gpu.stages import peers
folder = Path({folder!r})
def measure(check, shape, compiled, unit):
    (folder / "measured").open("a").write(str(shape) + "\\n")
    if not (folder / "killed").exists() and shape.k == 14:
        (folder / "worker").write_text(str(os.getpid()))
        time.sleep(60)
    unit.figures["ours"] = {{"seconds": 0.001}}
peers._against_peers = measure
"""
DRIVER = """
import sys
sys.path.insert(0, {root!r})
from benchmarks import gpu_check
from benchmarks.gpu import driver
driver.WORKER = ({worker!r},)
sys.exit(gpu_check.main(["--dry-run", "--out", {folder!r}, "--stages", "grid"]))
"""


def test_after_a_kill_in_the_middle_of_the_grid_the_next_call_measures_only_the_rest(tmp_path, planted):
    worker = planted(KILLED.format(folder=str(tmp_path)))
    script = tmp_path / "driver.py"
    out = tmp_path / "out"
    script.write_text(DRIVER.format(root=str(ROOT), worker=str(worker), folder=str(out)))
    call = subprocess.Popen([sys.executable, str(script)], cwd=ROOT)
    started, end = tmp_path / "worker", time.monotonic() + 120
    while not (started.exists() and started.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    call.kill()
    call.wait()
    assert gone(int(started.read_text()))  # the worker does not outlive its driver
    before = (tmp_path / "measured").read_text().splitlines()
    grid = stages_of(out)["grid"]
    done = len(before) - 1
    assert done >= 1
    assert len(grid["units"]) == done
    assert not grid["finished"]
    (tmp_path / "killed").touch()
    assert subprocess.run([sys.executable, str(script)], cwd=ROOT, timeout=120, check=False).returncode == 0
    after = (tmp_path / "measured").read_text().splitlines()[len(before) :]
    grid = stages_of(out)["grid"]
    assert after[0] == before[-1]  # the unit that was under way
    assert len(after) == len(grid["units"]) - done
    assert [each["call"] for each in grid["units"].values()] == [0] * done + [1] * len(after)


@pytest.mark.slow
def test_every_plan_runs_at_toy_sizes(tmp_path):
    assert gpu_check.main(["--dry-run", "--plan", "all", "--out", str(tmp_path), "--minutes", "20"]) == 0
    assert list(stages_of(tmp_path)) == list(plans.STAGES)
    assert len(list(tmp_path.iterdir())) <= 8
    page = (tmp_path / f"{NAME}.md").read_text()
    assert page.index("## Bars") < page.index("## gpu tests")
    assert "## Not finished" not in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    assert gpu_check.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1

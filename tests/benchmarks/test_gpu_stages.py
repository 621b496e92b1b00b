"""Every stage of gpu-check at toy sizes, and what it does with what fails."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import peers
from benchmarks.environment import ROOT
from benchmarks.gpu import check as checks
from benchmarks.gpu import once, plans, primitives, thresholds
from benchmarks.gpu.bench import SPARSE, Bench
from benchmarks.gpu.replay import in_both_forms
from benchmarks.gpu.stages import kernels, selection
from benchmarks.gpu.stages import peers as against
from benchmarks.gpu.stages import tests as stage_tests
from benchmarks.gpu.stages import thresholds as threshold_stage
from benchmarks.gpu.stages import tools as stage_tools
from benchmarks.shapes import Shape
from benchmarks.table import Bar
from tide_kernels import native, reference

SLOW = ("gpu tests", "kernel tests", "sanitizer", "ncu", "training", "grid")


def check_whole(entry):
    assert entry["finished"], entry
    assert [unit for unit in entry["units"].values() if "error" in unit] == []


# What else is asked of "kernels" and "step" is asked of the same runs, below.
@pytest.mark.parametrize("name", [name for name in plans.STAGES if name not in (*SLOW, "kernels", "step")])
def test_a_stage_runs_at_toy_sizes(name, run_stage):
    check_whole(run_stage(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_stage_runs_at_toy_sizes(name, run_stage):
    check_whole(run_stage(name))


def test_every_stage_is_in_a_plan_and_is_there():
    assert {name for plan in plans.PLANS.values() for name in plan} == plans.STAGES.keys()
    for stage in plans.STAGES.values():
        assert callable(stage.load())


def test_every_test_marked_gpu_is_run_by_a_stage():
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"\bmark\.gpu\b", path.read_text())]
    folders = [ROOT / stage_tests.TESTS, ROOT / stage_tests.TRAINING_TESTS]
    assert all(any(path.is_relative_to(folder) for folder in folders) for path in marked if path != Path(__file__))
    assert all(any(path.is_relative_to(folder) for path in marked) for folder in folders)


def test_every_figure_of_a_step_passed_its_gate_and_has_its_floor(run_stage):
    check_whole(entry := run_stage("step"))
    for unit in entry["units"].values():
        launched = {name for name in unit["figures"] if not name.endswith(", replayed")}
        assert len(launched) == 3
        assert unit["figures"].keys() - launched == {f"{name}, replayed" for name in launched}
        assert all({"seconds", "floor_seconds"} <= figure.keys() for figure in unit["figures"].values())
        assert all("gate_error" in unit["figures"][name] for name in launched)
        # Half as many bars where few latents are active: there is no aim beside the bar.
        assert {bar["bar"] for bar in unit["bars"]} in ({1.25, 1.15, 1.2}, {1.5, 1.2})


def out_of_resources() -> Exception:
    triton = pytest.importorskip("triton")
    return triton.runtime.errors.OutOfResources(300000, 232448, "shared memory")


def test_a_shape_that_runs_out_of_resources_is_recorded_and_the_next_begins(run_stage, monkeypatch):
    exact, failed = reference.keep_top_, []

    def keep_top_(pre, k):
        if pre.shape[1] == 512 and not failed:
            failed.append(pre.shape)
            raise out_of_resources()
        exact(pre, k)

    monkeypatch.setattr(reference, "keep_top_", keep_top_)
    monkeypatch.setattr(selection, "WIDTHS", (73728, 18432))
    entry = run_stage("selection")
    first, second = entry["units"].values()
    assert first["error"].startswith("OutOfResources: out of resource: shared memory, Required: 300000")
    assert "\n" not in first["error"]
    assert second["figures"]["in place"]["seconds"] > 0
    # A later call measures only what failed.
    again = run_stage("selection", call=1)
    assert "error" not in (units := again["units"])[(names := list(units))[0]]
    assert [units[name]["call"] for name in names] == [1, 0]


def test_a_contender_that_raises_anything_costs_only_its_row(run_stage, monkeypatch):
    def prepare(self, problem, autocast):
        raise TypeError("forward() got an unexpected\nkeyword argument")

    monkeypatch.setattr(peers.DenseTorch, "prepare", prepare)
    unit = next(iter(run_stage("step")["units"].values()))
    assert unit["figures"]["dense torch"]["note"] == "TypeError: forward() got an unexpected keyword argument"
    assert unit["figures"]["tide reference"]["seconds"] > 0
    assert "error" not in unit


def test_a_contender_with_wrong_gradients_gets_no_figure(run_stage, monkeypatch):
    accumulate = peers.BufferedStep.accumulate

    def wrong(self):
        accumulate(self)
        self.buffers["W_dec"] *= 1.01

    monkeypatch.setattr(peers.BufferedStep, "accumulate", wrong)
    unit = next(iter(run_stage("step")["units"].values()))
    assert "GateError: tide reference: the gradient of W_dec is off by" in unit["figures"]["tide reference"]["note"]
    assert "seconds" not in unit["figures"]["tide reference"]
    assert unit["bars"] == []


def test_a_device_that_does_not_answer_ends_the_process(run_stage, monkeypatch):
    monkeypatch.setattr(checks.Check, "_cleared", lambda check: False)
    monkeypatch.setattr(kernels, "stream_bandwidth", lambda device: 1 / 0)
    entry = run_stage("gathers")
    assert list(entry["units"]) == ["bandwidths"]
    assert entry["units"]["bandwidths"]["error"] == "ZeroDivisionError: division by zero"
    assert not entry["finished"]
    # Another process of the same call goes on with the next unit.
    monkeypatch.undo()
    entry = run_stage("gathers")
    assert len(entry["units"]) == 4
    assert "error" in entry["units"]["bandwidths"]


def test_no_unit_begins_when_the_time_is_up(run_stage):
    entry = run_stage("products", seconds=checks.LEAST - 1)
    assert [unit["error"] for unit in entry["units"].values()] == ["no time was left"]


def test_a_library_that_is_not_built_is_named_and_nothing_is_timed_twice(run_stage, monkeypatch):
    monkeypatch.setattr(native, "unavailable", lambda: "not built: no nvcc; run pip install")
    for unit in run_stage("compiled selection")["units"].values():
        assert unit["figures"] == {"CUDA": {"note": "not timed: not built: no nvcc; run pip install"}}


def test_a_selection_against_the_contract_gets_no_figure(run_stage, monkeypatch):
    if native.unavailable():
        pytest.skip(native.unavailable())
    monkeypatch.setattr(native, "keep_top_", lambda pre, k: pre.relu_())
    for unit in run_stage("compiled selection")["units"].values():
        assert unit["error"] == "GateError: keep_top_, CUDA: keeps entries that the contract does not"


@pytest.mark.parametrize("name", [*primitives.DENSE, *primitives.SPARSE_KERNELS])
def test_every_kernel_is_called_as_it_expects(name, monkeypatch):
    """By the Triton backend, which has the fusions, in its interpreter."""
    if reason := peers.Ours("triton").refuses(Shape(2, 2, 2, 1), torch.device("cpu")):
        if "interpreter" not in reason:
            pytest.skip(reason)
    bench = Bench(dry_run=True)
    bench.backend = "triton"
    run = (primitives.DENSE | primitives.SPARSE_KERNELS)[name](primitives.Operands(bench, Shape(20, 24, 70, 4)))
    if run is None:
        pytest.skip("the backend composes it from others")
    run()


def test_every_kernel_has_a_floor(run_stage):
    check_whole(entry := run_stage("kernels"))
    figures = [figure for unit in entry["units"].values() for figure in unit["figures"].values()]
    assert len(figures) == len(primitives.DENSE) + len(primitives.SPARSE_KERNELS)
    assert all(figure.get("floor_seconds", 1) > 0 for figure in figures)


FIGURES = {
    "mse": {"seconds": 1.0, "floor_seconds": 0.8},
    "all": {"seconds": 1.5},
    "dense torch": {"seconds": 1.6},
    "dense torch, compiled": {"seconds": 1.4},
    "sae-lens": {"seconds": 2.5},
    "eai-sparsify": {"note": "out of memory"},
}


def test_bars_at_five_percent():
    bars = against.peer_bars(Shape(16384, 1152, 18432, 922), FIGURES, "mse", "all")
    assert {(bar.what.split(" N")[0], bar.what.split("than ")[1]): (bar.bar, bar.met) for bar in bars} == {
        ("step", "dense torch"): (2.0, False),
        ("step", "dense torch, compiled"): (1.3, True),
        ("step", "sae-lens"): (2.0, True),
        ("all terms", "dense torch"): (1.0, True),
        ("all terms", "sae-lens"): (1.6, True),
    }


def test_bars_with_few_active_latents():
    bars = against.peer_bars(Shape(16384, 1152, 18432, 64), FIGURES, "mse", "all")
    assert [(bar.what.split("the best ")[1], bar.bar, bar.met) for bar in bars] == [
        ("(dense torch, compiled)", 2.0, False),
        ("(dense torch, compiled)", 2.0, False),
    ]


def test_without_a_peer_there_is_no_bar():
    assert against.peer_bars(Shape(16384, 1152, 18432, 922), {"mse": FIGURES["mse"]}, "mse", "all") == []


def test_the_small_shapes_run_every_kernel_and_both_regimes(capsys):
    fusions = 5  # which the reference lacks
    compiled = 2 if native.unavailable() is None else 0  # select and keep_top_
    small = Bench(dry_run=True)
    above = len(thresholds.works(small, small.shape(SPARSE)))
    steps = 2 * 4  # of both regimes, by each activation, BatchTopK with thresholds and without
    each = len(primitives.DENSE | primitives.SPARSE_KERNELS) - fusions + above + compiled + steps
    assert once.small(small) == 2 * each
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("keep_top_ N66", "step, sparse N128", "step, dense N66"))


def test_bars_of_threshold_steps_are_over_topk_and_over_the_best_of_each_package():
    seconds = {"tide topk": 2.0, "tide jumprelu": 1.0, "dense torch jumprelu": 4.0, "sae-lens jumprelu": 5.0}
    seconds |= {"dense torch jumprelu, compiled": 1.2, "sae-lens batch_topk": 3.0}
    bars = threshold_stage.step_bars(SPARSE, {name: {"seconds": value} for name, value in seconds.items()})
    assert [(bar.what.removeprefix(f"jumprelu step {SPARSE}"), bar.value, bar.met) for bar in bars] == [
        (" over the topk step", 0.5, True),
        (", times faster than sae-lens jumprelu", 5.0, True),
        (", times faster than dense torch jumprelu, compiled", 1.2, False),
    ]


def test_bars_of_replays_count_a_rival_without_one_as_it_is_launched():
    figures = {"own": {"seconds": 4.0}, "own, replayed": {"seconds": 1.0}, "rival": {"seconds": 8.0}}

    def bars(of):
        return [Bar("times faster", of["rival"]["seconds"] / of["own"]["seconds"], 2.0)]

    assert [(bar.what, bar.value) for bar in in_both_forms(bars, figures)] == [
        ("times faster", 2.0),
        ("replayed: times faster", 8.0),
    ]
    assert len(in_both_forms(bars, figures | {"own, replayed": {"note": "it reads a tensor back"}})) == 1


FAKE_SANITIZER = """#!{python}
import sys
print("========= COMPUTE-SANITIZER")
print("ran 3 kernels and steps")
if "racecheck" in sys.argv:
    print("========= Error: Race reported between Write access at select+0x10 in select.py:100")
    print("=========     and Read access at select+0x20 in select.py:120")
    print("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)")
else:
    print("========= ERROR SUMMARY: 0 errors")
"""


@pytest.fixture
def nothing_runs(monkeypatch):
    """In place of the kernels."""
    monkeypatch.setattr(stage_tools, "ONCE", (sys.executable, "-c", "print('ran 3 kernels and steps')"))


@pytest.mark.usefixtures("nothing_runs")
def test_the_sanitizer_counts_what_the_tool_prints(run_stage, tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(FAKE_SANITIZER.format(python=sys.executable))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    units = run_stage("sanitizer")["units"]
    assert [(bar["what"], bar["value"], bar["met"]) for unit in units.values() for bar in unit["bars"]] == [
        ("racecheck: errors", 1, False),
        ("memcheck: errors", 0, True),
    ]
    assert units["racecheck"]["notes"] == [
        "Error: Race reported between Write access at select+0x10 in select.py:100 and Read access at select+0x20 in "
        "select.py:120",
        "ran 3 kernels and steps",
    ]


@pytest.mark.usefixtures("nothing_runs")
def test_a_tool_that_says_nothing_is_a_failure(run_stage, tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    shutil.copy("/bin/true", tool)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    units = run_stage("sanitizer")["units"]
    assert {title: unit.get("error") for title, unit in units.items()} == {
        "without a tool": None,
        "racecheck": "RuntimeError: racecheck gave no summary",
        "memcheck": "RuntimeError: memcheck gave no summary",
    }


def test_a_stage_limits_its_units():
    assert all(stage.unit_seconds <= max(stage.seconds, 90) for stage in plans.STAGES.values())

"""Timelines of kernels, and what profilers and sanitizers print."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.gpu import timeline, tools
from benchmarks.gpu.configured import configured
from benchmarks.gpu.timeline import Event

EVENTS = [
    Event("select_kernel", 0.0, 2.0),
    Event("nvjet_hsh_128x256", 1.5, 4.0),  # overlaps on another stream
    Event("inside", 2.0, 3.0),
    Event("select_kernel", 5.0, 6.0),
    Event("loss_kernel", 8.0, 8.5),
]


def test_a_timeline_adds_up_kernels_and_finds_gaps():
    found = timeline.summary(EVENTS, 2)
    assert found.span == 8.5
    assert found.busy == 5.5
    assert found.share == pytest.approx(5.5 / 8.5)
    assert list(found.kernels.items())[:2] == [("select_kernel", (2, 3.0)), ("nvjet_hsh_128x256", (1, 2.5))]
    assert found.gaps == [(2.0, "select_kernel", "loss_kernel"), (1.0, "nvjet_hsh_128x256", "select_kernel")]
    assert found.slowest(2) == ["select_kernel", "inside"]  # not the library's product


def test_a_profile_without_kernels_is_an_error():
    with pytest.raises(RuntimeError, match="the profiler recorded no kernel"):
        timeline.summary([], 1)


def test_a_run_is_recorded_as_often_as_it_is_repeated():
    x = torch.randn(32, 32)
    found = timeline.record(lambda: x @ x, torch.device("cpu"), 3)
    assert [event.name for event in found].count("aten::mm") == 3
    assert all(event.end > event.begin for event in found)


OF_A_LAUNCH = '"python3","127.0.0.1","masked_gradient_kernel","1","7"'
NCU = [
    "==PROF== Connected to process 12",
    '==PROF== Profiling "masked_gradient_kernel" - 0: 0%....100% - 30 passes',
    "ran",
    '"ID","Process Name","Host Name","Kernel Name","Context","Stream","Section Name","Metric Name","Metric Unit",'
    '"Metric Value"',
    f'"0",{OF_A_LAUNCH},"GPU Speed Of Light Throughput","Duration","us","1,250.50"',
    f'"0",{OF_A_LAUNCH},"GPU Speed Of Light Throughput","Compute (SM) Throughput","%","61.20"',
    f'"0",{OF_A_LAUNCH},"Launch Statistics","Registers Per Thread","register/thread","126"',
    f'"1",{OF_A_LAUNCH},"GPU Speed Of Light Throughput","Duration","msecond","9"',
    f'"1",{OF_A_LAUNCH},"Occupancy","Achieved Occupancy","%","12"',
    "==PROF== Disconnected from process 12",
]


def test_the_first_launch_of_each_kernel_is_read_from_ncu():
    assert tools.profiles(NCU) == {
        "masked_gradient_kernel": (pytest.approx(1.2505e-3), "compute 61.20 %, registers 126")
    }
    assert tools.profiles(["==ERROR== no permission"]) == {}


FAKE_NCU = """#!{python}
import sys
print({lines!r})
print(" ".join(sys.argv), file=open({seen!r}, "a"))
"""


def test_the_slowest_kernels_are_given_to_ncu(run_stage, tmp_path, monkeypatch):
    tool, seen = tmp_path / "ncu", tmp_path / "seen"
    tool.write_text(FAKE_NCU.format(python=sys.executable, lines="\n".join(NCU), seen=str(seen)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(timeline.Timeline, "slowest", lambda self, count: ["void tide::select<64>(int*)", "_loss"])
    units = run_stage("ncu")["units"]
    assert list(units) == ["dense", "sparse"]
    for unit in units.values():
        assert unit["figures"]["masked_gradient_kernel"]["note"] == "compute 61.20 %, registers 126"
    first = seen.read_text().splitlines()[0]
    assert " --kernel-name regex:^(tide::select|_loss)$ --launch-count 12 " in first
    assert first.endswith("-m benchmarks.gpu.once step --regime dense --dry-run")


def test_the_sanitizers_counts_are_added_up_over_processes():
    lines = ["========= ERROR SUMMARY: 0 errors", "text", "========= RACECHECK SUMMARY: 3 hazards displayed (2 errors)"]
    assert tools.count_of_errors(lines) == 3
    assert tools.count_of_errors(["========= COMPUTE-SANITIZER"]) is None


def test_a_file_of_configurations_counts_only_within(tmp_path, monkeypatch):
    configs = pytest.importorskip("tide_kernels.triton.configs")
    monkeypatch.setenv("TIDE_KERNELS_CACHE", str(tmp_path / "none"))
    path = tmp_path / "tuned.json"
    path.write_text('{"modulate/sm_90/bfloat16/2048": {"ROWS": 2}}')
    place = ("modulate", "sm_90", torch.bfloat16, 1152)
    before = configs.lookup(*place)
    with configured(path):
        assert configs.lookup(*place) == before | {"ROWS": 2}
    assert configs.lookup(*place) == before

"""The benchmarks' own machinery: gates that close, floors and tables, and the GPU check's code at toy sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import cpu_bars, gate, gpu_check, measure, peers, shapes, table
from benchmarks.gpu_stages import STAGES, Check

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent
SHAPE = shapes.Shape(24, 16, 64, 6)


def _step(all_terms: bool, dtype: torch.dtype = torch.float32, contender: peers.Contender | None = None):
    contender = contender or peers.Ours("reference", all_terms)
    problem = gate.clear_problem(SHAPE, CPU, dtype, all_terms=all_terms)
    autocast = None if dtype == torch.float32 else dtype
    return contender, contender.prepare(problem, autocast), gate.truth(problem, dtype, all_terms=all_terms)


@pytest.mark.parametrize("all_terms", [False, True], ids=["mse", "all terms"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gate_is_green_for_the_reference(all_terms, dtype):
    contender, step, truth = _step(all_terms, dtype)
    assert gate.check(contender, step, truth, dtype) <= gate.tolerance(contender, dtype)
    assert set(truth.gradients) == set(step.leaves)


def test_the_gate_is_green_for_dense_torch():
    gate.check(*_step(False, contender=peers.DenseTorch()), torch.float32)


@pytest.mark.parametrize("wrong", [lambda p: p * 1.001, lambda p: p * torch.nan], ids=["off by 0.1 %", "NaN"])
def test_the_gate_is_red_for_a_wrong_gradient(wrong):
    contender, step, truth = _step(False)
    right = step.loss
    step.loss = lambda: wrong(right())
    with pytest.raises(gate.GateError, match=r"allowed 1\.0e-05"):
        gate.check(contender, step, truth, torch.float32)


def test_the_truth_does_not_depend_on_its_chunks(monkeypatch):
    problem = gate.clear_problem(SHAPE, CPU, torch.float32, all_terms=True)
    whole = gate.truth(problem, torch.float32, all_terms=True)
    monkeypatch.setattr(gate, "CHUNK_ELEMENTS", 4 * SHAPE.n_latents)
    for name, gradient in gate.truth(problem, torch.float32, all_terms=True).gradients.items():
        torch.testing.assert_close(gradient, whole.gradients[name])


def test_clear_problems_have_no_near_ties():
    problem = gate.clear_problem(SHAPE, CPU, torch.float32, all_terms=False)
    pre = torch.nn.functional.linear(problem.x, problem.W_enc, problem.b_enc)
    assert len(problem.x) == SHAPE.n_tokens
    assert float(gate._gap(pre.double(), SHAPE.k).min()) > 1e-4


def test_the_interpreter_is_never_timed(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in (peers.Ours("triton").refuses(SHAPE, CPU) or "")


def test_peers_that_are_not_installed_are_named(monkeypatch):
    for module in ("sparsify", "sae_lens"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "pip install eai-sparsify" in (peers.Sparsify().refuses(SHAPE, CPU) or "")
    assert "pip install sae-lens" in (peers.SaeLens().refuses(SHAPE, CPU) or "")


@pytest.mark.parametrize(
    ("changes", "extra", "total"),
    [
        ([100, -100], 100, 100),
        ([100, 40, -100], 100, 140),  # 40 stay: the result
        ([-50, 50, 30, -30], 30, 30),  # old gradients go, new ones come
        ([], 0, 0),
    ],
)
def test_peak_leaves_out_what_the_run_leaves_behind(changes, extra, total):
    assert measure._peak_of(changes) == measure.Peak(extra, total)


def test_peak_of_a_run():
    kept = []
    found = measure.peak(lambda: kept.append((torch.ones(1000) + 1)[:1].clone()), CPU)
    assert 8000 <= found.extra <= 8100


def test_runs_are_interleaved_and_prepared():
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = measure.interleaved(runs, CPU, repetitions=2, warmup=1, before={"b": lambda: calls.append("before b")})
    assert calls == ["a", "before b", "b"] * 3
    assert len(timings["a"].seconds) == 2


def test_timing():
    timing = measure.Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert timing.median == 3.0
    assert timing.spread == pytest.approx(2 / 3)


def test_tables_line_up():
    lines = table.markdown(["a", "bb"], [["long", "1"]]).splitlines()
    assert lines == ["| a    | bb |", "|------|----|", "| long | 1  |"]


def test_bars_look_in_their_direction():
    assert table.Bar("faster", 3.0, 2.0).met
    assert not table.Bar("over the floor", 3.0, 2.0, at_most=True).met
    assert not table.Bar("not a number", float("nan"), 2.0).met


def test_every_stage_runs_at_toy_sizes(tmp_path):
    out = tmp_path / "check.json"
    stages = [name for name in STAGES if name not in ("kernel tests", "step, tuned")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--out", str(out), "--stages", *stages]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(out.read_text())
    assert set(record["stages"]) == set(stages)
    figures = record["stages"]["step"]["figures"]
    assert all("gate_error" in figure for found in figures.values() for figure in found.values())
    assert "## Bars" in out.with_suffix(".md").read_text()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"environment": {"date": ""}, "stages": {"step": 3}}'])
def test_a_record_that_is_damaged_is_neither_overwritten_nor_used(tmp_path, capsys, content):
    out = tmp_path / "check.json"
    out.write_text(content)
    assert gpu_check.main(["--dry-run", "--out", str(out), "--stages", "products"]) == 2
    assert f"{out} is not a record of gpu-check (" in capsys.readouterr().err
    assert out.read_text() == content


def test_a_stage_that_fails_does_not_lose_the_others(tmp_path, monkeypatch, capsys):
    def fails(check):
        check.notes.append("found before")
        raise RuntimeError("no such\nkernel")

    monkeypatch.setitem(STAGES, "products", fails)
    out = tmp_path / "check.json"
    assert gpu_check.main(["--dry-run", "--out", str(out), "--stages", "products", "gathers"]) == 1
    stages = json.loads(out.read_text())["stages"]
    assert stages["products"]["error"] == "RuntimeError: no such kernel"
    assert stages["products"]["notes"] == ["found before"]
    assert "error" not in stages["gathers"]
    # A later run completes the file.
    monkeypatch.setitem(STAGES, "products", lambda check: None)
    assert gpu_check.main(["--dry-run", "--out", str(out), "--stages", "products"]) == 0
    assert list(json.loads(out.read_text())["stages"]) == ["products", "gathers"]
    assert "not finished: products" in capsys.readouterr().out


def test_no_stage_begins_after_the_time_is_up(tmp_path):
    out = tmp_path / "check.json"
    assert gpu_check.main(["--dry-run", "--out", str(out), "--minutes", "0", "--stages", "gathers"]) == 1


def test_grid_bars():
    check = Check(CPU, True, 0.0)
    figures = {
        "ours": {"seconds": 1.0},
        "dense torch": {"seconds": 1.5},
        "sae-lens": {"seconds": 1.5},
        "eai-sparsify": {"note": "out of memory"},
    }
    gpu_check.gpu_stages._grid_bars(check, shapes.Shape(16384, 1152, 18432, 922), figures, "ours")
    assert [(bar.what.split()[-1], bar.bar, bar.met) for bar in check.bars] == [
        ("torch", 1.0, True),
        ("sae-lens", 1.6, False),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_one_line_says_so(capsys):
    assert gpu_check.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_cpu_bars_run_at_toy_sizes(tmp_path, capsys):
    out = tmp_path / "cpu.json"
    assert cpu_bars.main(["--dry-run", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert {"select", "step", "product"} == {name.split()[0] for name in record["figures"]}
    printed = capsys.readouterr().out
    assert all(bar["what"] in printed for bar in record["bars"])

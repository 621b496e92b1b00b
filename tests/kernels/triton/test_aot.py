"""Ahead-of-time compilation: one record of each kernel compiles, and the checks find what they look for."""

import os
import subprocess
import sys

import pytest

from tide_kernels.triton import aot, specs

PTX = """
max.NaN.f32 %f1, %f2, %f3;
max.s32 %r1, %r2, %r3;
atom.global.gpu.acq_rel.add.u32 %r4, [%rd1], 1;
"""


def test_each_kernel_compiles_within_the_limits_of_its_architecture():
    # In a separate process: in this one kernels may be defined for the interpreter.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tide_kernels.triton.aot"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_sample_has_every_kernel_for_sm_90_and_every_architecture():
    records = specs.collect()
    chosen = aot.sample(records)
    kernels = {record.kernel.__name__ for record in records}
    assert {record.kernel.__name__ for record in chosen if record.arch == "sm_90"} == kernels
    assert {record.arch for record in chosen} == set(specs.ARCHS)
    assert len(chosen) <= 3 * len(kernels)


def test_the_sample_has_the_record_of_each_kernel_with_the_fewest_arguments():
    by_kernel = {}
    for record in specs.collect():
        by_kernel.setdefault(record.kernel.__name__, []).append(record)
    chosen = {record.name for record in aot.sample(specs.collect()) if record.arch == "sm_90"}
    for records in by_kernel.values():
        fewest = min(len(record.signature) for record in records if record.arch == "sm_90")
        assert any(len(record.signature) == fewest for record in records if record.name in chosen)


def test_a_kernel_that_does_not_compile_says_what_is_wrong_and_not_who_called(monkeypatch):
    def compile_spec(spec):
        raise RuntimeError("at 19:4: modulate_rows(") from TypeError("cannot convert None to tensor")

    monkeypatch.setattr(aot, "compile_spec", compile_spec)
    report = aot.examine(specs.collect()[0])
    assert report.complaints == ("does not compile: cannot convert None to tensor",)


def test_harmless_ptx_passes():
    assert list(aot._complaints_about_ptx(PTX)) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("max.f32 %f1, %f2, 0f00000000;", "drops NaN in max.f32"),
        ("min.ftz.f32 %f1, %f2, %f3;", "drops NaN in min.ftz.f32"),
        ("max.bf16x2 %r1, %r2, %r3;", "drops NaN in max.bf16x2"),
        ("red.global.add.f32 [%rd1], %f1;", "adds floats atomically in red.global.add.f32"),
        ("atom.global.gpu.acq_rel.add.noftz.f16 %h1, [%rd1], %h2;", "adds floats atomically in"),
    ],
)
def test_ptx_that_drops_nan_or_races_is_found(line, complaint):
    (found,) = aot._complaints_about_ptx(PTX + line)
    assert found.startswith(complaint)


def test_resources_of_an_amd_kernel():
    assembly = "    .vgpr_count:     74\n    .vgpr_spill_count: 3\n    .sgpr_spill_count: 9\n"
    assert aot._resources_of_amdgcn(assembly) == (74, 3)


def test_nothing_to_compile_is_said(capsys, monkeypatch):
    monkeypatch.setattr(aot, "INTERPRETED", False)
    assert aot.main(["--kernel", "no such kernel"]) == 2
    assert "no record matches" in capsys.readouterr().err


def test_the_interpreter_is_said(capsys, monkeypatch):
    monkeypatch.setattr(aot, "INTERPRETED", True)
    assert aot.main([]) == 2
    assert "TRITON_INTERPRET" in capsys.readouterr().err

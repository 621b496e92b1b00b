"""The committed figures of ahead-of-time compilation, and what counts as worse."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import aot as tables
from benchmarks import work
from tide_kernels.triton import aot
from tide_kernels.triton.assembly import Loops
from tide_kernels.triton.specs import collect

ROOT = Path(__file__).parents[1]
REPORT = aot.Report(
    "masked_gradient bf16 ieee",
    "sm_90",
    {"num_warps": 8, "num_stages": 3},
    registers=126,
    shared=98304,
    programs=2,
    loops=Loops(2, 3, ("wgmma m64n128k16",)),
    buffers=((3, 3),),
)
RECORD = next(record for record in collect() if (record.arch, record.name) == ("sm_90", REPORT.name))


def row(**changes):
    return tables.figures(RECORD, replace(REPORT, **changes))


def environment():
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.skipif(
    not tables.path_of(tables.version()).exists(), reason=f"no table for Triton {tables.version()} is committed"
)
def test_no_kernel_of_the_sample_is_worse_than_committed():
    command = [sys.executable, "-m", "benchmarks.aot", "--sample"]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_equal_or_better_figures_pass():
    assert tables.worse(row(), row()) == []
    assert tables.worse(row(), row(registers=130)) == []  # as long as as many programs fit
    assert tables.worse(row(), row(registers=90, programs=3, shared=0, loops=Loops(1, 1, ("wgmma m64n128k16",)))) == []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"registers": 132, "programs": 1},
            "programs on a multiprocessor 2 to 1 (registers 126 to 132, shared 98304 to 98304)",
        ),
        ({"spills": 8}, "spills 0 to 8"),
        ({"shared": 98305}, "shared 98304 to 98305"),
        ({"loops": Loops(3, 3, ("wgmma m64n128k16",))}, "barriers 2 to 3"),
        ({"loops": Loops(2, 4, ("wgmma m64n128k16",))}, "looped barriers 3 to 4"),
        ({"loops": Loops(2, 3, ("mma m16n8k16",))}, "products wgmma m64n128k16 to mma m16n8k16"),
        ({"loops": Loops(2, 3, ())}, "products wgmma m64n128k16 to none"),
        ({"buffers": ((3, 3), (2, 3))}, "buffers [3, 3] to [2, 3]"),
        ({"buffers": ()}, "buffers [3, 3] to []"),
    ],
)
def test_each_figure_that_became_worse_is_named(changes, complaint):
    assert tables.worse(row(), row(**changes)) == [complaint]


def test_a_record_that_is_not_in_the_table_is_named():
    table = {"sm_90": {RECORD.name: row()}}
    assert tables.compared(table, table) == []
    assert tables.compared(table, {"sm_80": {}}) == [f"sm_90 {RECORD.name}: not in the committed table"]


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    table = {"sm_90": {RECORD.name: row(), "fold": row(buffers=(), loops=Loops()) | {"bytes": None, "flops": None}}}
    tables.write(table, "9.9.9")
    assert tables.read(tables.path_of("9.9.9")) == table
    page = tables.path_of("9.9.9").with_suffix(".md").read_text()
    assert "| masked_gradient bf16 ieee | 8     | 3      | 126       | 2        |" in page


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"records": {"sm_90": {"select": {}}}}', '{"records": []}'])
def test_a_file_that_holds_no_table_is_said(content, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(tables, "INTERPRETED", False)
    tables.path_of(tables.version()).write_text(content)
    assert tables.main(["--kernel", "fold"]) == 2
    assert "is not a table of python -m benchmarks.aot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--kernel", "no such kernel"], "no record matches"),
        (["--write", "--sample"], "--write takes every record"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, complaint, monkeypatch, capsys):
    monkeypatch.setattr(tables, "INTERPRETED", False)
    assert tables.main(arguments) == 2
    assert complaint in capsys.readouterr().err


def test_without_a_table_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    assert tables._conclude({}, [], None, False) == 0
    assert "no table for Triton" in capsys.readouterr().out


def test_complaints_are_never_accepted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    assert tables._conclude({"sm_90": {"a": row()}}, ["sm_90 b: spills 8 bytes a thread"], None, True) == 1
    assert "FAILED: sm_90 b" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_records_count_their_own_sizes():
    by_name = {record.name: record for record in collect() if record.arch == "sm_90"}
    assert tables.work_of(by_name["select in place bf16 n=4608"]) == work.Work(streamed=2 * 16384 * 4608 * 2)
    assert tables.work_of(by_name["masked_gradient fp32 tf32"]).flops == 2 * 16384 * 1152 * 18432
    gather = tables.work_of(by_name["gather bf16 d=4608"])
    assert gather.gathered == 16384 * 32 * 4608 * 2
    assert tables.work_of(by_name["fold d=1152"]) is None
    assert tables.work_of(by_name["modulate bf16 without scale"]) is None

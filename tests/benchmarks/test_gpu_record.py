"""Records of gpu-check: what is finished, what is kept of other devices, merging, the page."""

from __future__ import annotations

import json

import pytest

from benchmarks import environment, gpu_check
from benchmarks.gpu import record as records
from benchmarks.gpu.report import report

H100 = {"date": "2026-01-02", "commit": "aaa", "device": "NVIDIA H100"}
H200 = {"date": "2026-01-03", "commit": "bbb", "device": "NVIDIA H200"}


def unit(call=0, seconds=0.001, error=None):
    bar = {"what": "step over its floor", "value": 1.2, "bar": 1.25, "at_most": True, "met": True}
    figures = {"ours": {"seconds": seconds, "floor_seconds": 0.0005}}
    found = {"figures": figures, "bars": [bar], "notes": ["a note"], "call": call}
    return found if error is None else found | {"figures": {}, "bars": [], "notes": [], "error": error}


def record(call, **stages):
    return {"calls": [call], "stages": {n: {"units": u, "finished": True, "call": 0} for n, u in stages.items()}}


def test_a_stage_is_finished_if_none_of_its_units_failed():
    found = record(H100, step={"a": unit()}, grid={"a": unit(), "b": unit(error="TypeError: no")})
    found["stages"]["memory"] = {"units": {"a": unit()}, "finished": False}
    assert [name for name in (*found["stages"], "other") if records.finished(found, name)] == ["step"]


def test_two_calls_make_one_record():
    first = record(H100, step={"a": unit()}, grid={"a": unit(), "b": unit(error="OutOfResources: no")})
    second = record(H100, grid={"b": unit(seconds=0.002)}, memory={"a": unit()})
    whole, repeated = records.merge([first, second])
    assert list(whole["stages"]) == ["step", "grid", "memory"]
    assert [u["call"] for u in whole["stages"]["grid"]["units"].values()] == [0, 1]
    assert all(records.finished(whole, name) for name in whole["stages"])
    assert repeated == ["grid: b"]
    page = report(whole)
    assert "differ" not in page
    assert "- call 2 (the same): grid, memory" in page


def test_a_failure_does_not_replace_a_figure():
    whole, _ = records.merge([record(H100, step={"a": unit()}), record(H100, step={"a": unit(error="no")})])
    assert "error" not in whole["stages"]["step"]["units"]["a"]


def test_calls_that_differ_are_said_in_words():
    page = report(records.merge([record(H100, step={"a": unit()}), record(H200, grid={"a": unit()})])[0])
    assert "**The figures come from calls that differ in device and commit.**" in page
    assert "- call 1 (date 2026-01-02, commit aaa, device NVIDIA H100): step\n" in page
    assert "- call 2 (date 2026-01-03, commit bbb, device NVIDIA H200): grid\n" in page


def test_figures_of_another_device_are_not_completed():
    both, _ = records.merge([record(H100, step={"a": unit()}), record(H200, grid={"a": unit()})])
    kept, others = records.without_other_devices(both, "NVIDIA H200")
    assert list(kept["stages"]) == ["grid"]
    assert others == ["NVIDIA H100"]


def test_the_page_has_bars_first_and_a_table_for_each_stage():
    page = report(record(H100, step={"small": unit(), "large": unit(error="TypeError: no")}))
    order = ["# NVIDIA H100, 2026-01-02", "commit: aaa", "## Bars", "1 of 1 are met.", "## Not finished"]
    order += [
        "- step: failed: large",
        "## step",
        "| what  | by   | median ms | floor ms | x floor |",
        "- small: a note",
    ]
    places = [page.index(text) for text in [*order, "- FAILED large: TypeError: no"]]
    assert places == sorted(places)


def test_the_command_merges_files(tmp_path, capsys):
    for name, found in (("a", record(H100, step={"a": unit()})), ("b", record(H200, grid={"a": unit()}))):
        records.save(tmp_path / f"{name}.json", found)
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    assert gpu_check.main(["--merge", *files, "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "several-devices-2026-01-03.json",
        "several-devices-2026-01-03.md",
    ]
    assert gpu_check.main(["--merge", files[0], "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "nvidia-h100-2026-01-02.json").exists()
    assert gpu_check.main(["--merge", str(tmp_path / "none.json")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.json does not exist: give records of earlier calls\n"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"calls": [{"date": ""}], "stages": {"step": 3}}'])
def test_a_record_that_is_damaged_is_neither_overwritten_nor_used(tmp_path, capsys, content):
    path = tmp_path / "damaged.json"
    path.write_text(content)
    assert gpu_check.main(["--merge", str(path), "--out", str(tmp_path)]) == 2
    assert f"{path} is not a record of gpu-check (" in capsys.readouterr().err
    assert path.read_text() == content


def test_the_commit_is_named_packed_or_gits(tmp_path, monkeypatch):
    packed = tmp_path / "commit.txt"
    monkeypatch.delenv("TIDE_COMMIT", raising=False)
    monkeypatch.setattr(environment, "PACKED_COMMIT", packed)
    monkeypatch.setattr(environment, "_git", lambda: "0123456789ab-dirty")
    assert environment.commit() == "0123456789ab-dirty"
    packed.write_text("0123456789abcdef0123456789abcdef01234567 with changes\n")
    assert environment.commit() == "0123456789abcdef0123456789abcdef01234567 with changes"
    packed.write_text("ffff\n")
    assert environment.commit() == "ffff (packed; git: 0123456789ab-dirty)"
    monkeypatch.setattr(environment, "_git", lambda: None)
    assert environment.commit() == "ffff"
    packed.unlink()
    assert environment.commit() == "unknown"
    monkeypatch.setenv("TIDE_COMMIT", "named")
    assert environment.commit() == "named"


def test_names_of_files_hold_nothing_odd():
    assert environment.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert environment.file_name("GPU (rev. 2)/x_1") == "gpu-rev.-2-x-1"


def test_records_are_saved_with_their_page(tmp_path):
    path = tmp_path / "check.json"
    records.save(path, record(H100, step={"a": unit()}))
    assert json.loads(path.read_text()) == records.load(path)
    assert path.with_suffix(".md").read_text() == report(records.load(path))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["check.json", "check.md"]

"""``tide browse --export``: the options; what is written is in tests/browser."""

from __future__ import annotations

import json
import shutil

from tide.interpretation.names import NAMES, Entry, Names


def test_an_export(cli, indexed, tmp_path):
    run, out = tmp_path / "run", tmp_path / "my site"
    shutil.copytree(indexed, run)
    Names(run / NAMES).add([Entry(3, "person:Ada", "2026-01-01T00:00:00Z", name="roof", note="ask Bob")])
    result = cli("browse", run, "--export", out)
    assert (result.code, result.err) == (0, "")
    first, last = result.out.splitlines()
    assert first.startswith("Writing ")
    assert last == f"Look at it with: python -m http.server --directory '{out}'"
    names = out / "api" / "runs" / "run" / "names.json"
    assert json.loads(names.read_text())["3"]["notes"][0]["note"] == "ask Bob"
    assert cli("browse", run, "--export", out, "--no-notes", "--limit", 1).code == 0
    assert json.loads(names.read_text())["3"]["notes"] == []
    latents = [json.loads(each.read_text()) for each in (out / "api" / "runs" / "run" / "latents").iterdir()]
    assert sum(bool(each["drawn"]) for each in latents) == 1


def test_several_runs(cli, indexed, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(indexed, tmp_path / "runs" / name)
    assert cli("browse", tmp_path / "runs", "--export", tmp_path / "out").code == 0
    listed = json.loads((tmp_path / "out" / "api" / "runs.json").read_text())
    assert [each["id"] for each in listed["runs"]] == ["one", "two"]
    assert (tmp_path / "out" / "api" / "runs" / "two" / "columns.bin").exists()


def test_an_interruption(cli, indexed, tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tide.browser.export._replace", stopped)
    result = cli("browse", indexed, "--export", tmp_path / "out")
    assert (result.code, result.err) == (130, f"tide: interrupted; {tmp_path}/out is as it was\n")
    assert list(tmp_path.iterdir()) == []


def test_refusals(cli, checkpoint, indexed, tmp_path):
    def refused(*options: object) -> str:
        result = cli("browse", *options)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
        return result.err.removeprefix("tide: error: ").strip()

    out = tmp_path / "out"
    no_index = f"{checkpoint} has no index; make one: tide browse {checkpoint}, or tide atlas --index"
    assert refused(checkpoint, "--export", out) == no_index
    assert refused(indexed, "--limit", 3) == "--limit is not used without --export; leave it off"
    assert refused(indexed, "--port", 3, "--export", out) == "--port is not used with --export; leave it off"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine").touch()
    assert "own is not empty and not an earlier export" in refused(indexed, "--export", tmp_path / "own")
    assert not out.exists()

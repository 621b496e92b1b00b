"""The command line itself: quick help, the doctor, Ctrl-C, tracebacks only on request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tide.cli import COMMANDS, build_parser, main
from tide.commands import arguments, doctor


def test_help_loads_neither_torch_nor_diffusers():
    code = (
        "import sys; from tide.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("demo", "collect", "train", "evaluate", "concepts", "edit", "doctor"))


@pytest.mark.parametrize("command", [c.__name__.rsplit(".", 1)[1] for c in COMMANDS])
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: tide {command}" in capsys.readouterr().out


def test_unknown_command(cli):
    result = cli("paint")
    assert result.code == 2
    assert result.err.startswith("tide: error: argument COMMAND: invalid choice: 'paint'")
    assert result.err.count("\n") == 1


def test_doctor_as_json(cli):
    result = cli("doctor", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert found["used"] in found["backends"]
    assert found["backends"][found["used"]] is None
    assert found["backends"]["reference"] is None
    assert set(found["bundled"]) == {"pipeline", "judge"}
    assert {"python", "torch", "diffusers", "tide-sae"} <= found["versions"].keys()
    assert found["machine"]["threads"] >= 1
    assert found["disk_free_gb"] > 0


def test_doctor_in_words(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.scenes.pipeline.DATA", tmp_path)
    result = cli("doctor")
    assert result.code == 0
    assert result.out.splitlines()[-1].endswith("and the demo cannot run: no pipeline and no judge.")


def test_demo_prints_what_was_found(cli, tmp_path, monkeypatch):
    given = {}

    def demo(out, **options):
        given.update(options, out=out)
        return {"headline": "It works."}

    monkeypatch.setattr("tide.study.run.demo", demo)
    result = cli("demo", "--fast", "--out", tmp_path / "d", "--seed", 3, "--backend", "reference")
    assert result.code == 0
    assert result.out == f"It works.\nThe report is {tmp_path}/d/report.html.\n"
    assert given == {"out": tmp_path / "d", "fast": True, "seed": 3, "backend": "reference", "resume": False}
    assert json.loads((tmp_path / "d/run.json").read_text())["seed"] == 3


def test_evaluate_on_scenes_is_the_study(cli, checkpoint, tmp_path, monkeypatch):
    given = {}

    def evaluate(sae, out, **options):
        given.update(options, sae=sae, out=out)
        return {"headline": "It reconstructs.", "models": {}}

    verdicts = SimpleNamespace(evaluate=evaluate, verdicts=lambda figures: [f"met  {figures['headline']}"])
    monkeypatch.setitem(sys.modules, "tide.study.bars", verdicts)
    options = ["--sae", checkpoint, "--pipeline", "scenes", "--fast", "--out", tmp_path / "e"]
    result = cli("evaluate", *options)
    assert result.code == 0
    assert "met  It reconstructs." in result.out
    options = {"prompts": 4, "edit_prompts": None, "seed": 0, "fast": True, "resume": False}
    options |= {"backend": "auto", "block": None}
    assert given == {"sae": checkpoint, "out": tmp_path / "e", **options}


def test_interrupted_with_nothing_written(cli, monkeypatch):
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert cli("doctor") == (130, "", "tide: interrupted; nothing was written\n")


def test_a_reader_that_has_seen_enough():
    """`tide doctor | head -1` ends without a word, whether a line or the buffer's rest finds the pipe closed."""
    for unbuffered in ("", "1"):
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "tide.cli", "doctor"]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=environment)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken() -> None:
        raise KeyError("bug")

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(KeyError):
        main(["doctor"])


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("TIDE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="required: --out"):
        main(["train"])


def test_values():
    assert arguments.size("64") == (64, 64)
    assert arguments.size("768x1024") == (768, 1024)
    assert arguments.n_bytes("50GB") == 50 * 10**9
    assert arguments.n_bytes("1.5 kb") == 1500
    assert arguments.fraction("1/16") == 0.0625 == arguments.fraction("0.0625")
    assert arguments.block("-2") == -2
    assert arguments.block("penultimate") == "penultimate"
    assert arguments.scaling("12,40=3.0") == ((12, 40), 3.0)
    assert arguments.words("House, tree,house") == ("house", "tree")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "0"),
        ("--size", "wide"),
        ("--quota", "50 pints"),
        ("--token-fraction", "1/0"),
        ("--block", "last"),
        ("--timesteps", "0"),
    ],
)
def test_bad_values_are_one_line(cli, option, value):
    result = cli("collect", "--pipeline", "scenes", "--data", "scenes", "--out", "x", option, value)
    assert result.code == 2
    assert result.err.startswith(f"tide: error: argument {option}: '{value}' is no ")
    assert result.err.count("\n") == 1


def test_the_parser_knows_every_command():
    parser = build_parser()
    assert parser.parse_args(["doctor", "--json"]).json is True


def test_a_torchvision_of_another_torch(cli, monkeypatch):
    """Every import of diffusers fails beside it, in words that do not name it."""

    def fails(args):
        raise RuntimeError("Failed to import diffusers.loaders.peft because of the following error: PreTrainedModel")

    monkeypatch.setattr(doctor, "run", fails)
    with pytest.raises(RuntimeError, match="Failed to import"):
        main(["doctor"])
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    result = cli("doctor")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "beside this torchvision, which was built for another torch; install torchvision from where" in result.err

"""The command line itself: quick help, the doctor, Ctrl-C, tracebacks only on request."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tide.cli import doctor
from tide.cli.app import COMMANDS, main
from tide.errors import Interrupted
from tide.files import lock_folder
from tide.runs import contents, read_run

QUIET_HELP = """
import sys
from tide.cli.app import main
try:
    assert main({words!r}) == 0
except SystemExit as end:
    assert end.code == 0
heavy = {{"torch", "diffusers", "transformers", "numpy", "PIL", "matplotlib"}} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_neither_torch_nor_diffusers(words):
    code = QUIET_HELP.format(words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: tide {'COMMAND' if len(words) == 1 else words[0]}" in done.stdout


def test_help_names_every_command(cli):
    for words in ([], ["--help"], ["-h"]):
        result = cli(*words)
        assert result.code == 0
        assert [line.split()[0] for line in result.out.splitlines() if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["edit", "--help"]], ids=" ".join)
def test_help_answers_in_half_a_second(words):
    """Or, on a slow machine, in 2.5 times what the import of the parser's libraries takes (torch's takes 14 times as
    long). Processor time, which other processes of a busy machine do not lengthen as much; the least of three."""

    def least(*arguments: str) -> float:
        seconds = []
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(seconds)

    assert least("-m", "tide.cli", *words) < max(0.5, 2.5 * least("-c", "import tyro, typeguard"))


def test_unknown_command(cli):
    result = cli("paint")
    assert result.code == 2
    assert result.err.startswith("tide: error: 'paint' is not a command; the commands are demo, collect, ")
    assert "did you mean edit?" in cli("edits").err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --sae, --prompt, --out"),
        (["--erase", "1", "--invert", "2"], "--erase and --invert are not allowed together"),
        (["--clpi", "x", "--erase", "1"], "Unrecognized options: --clpi, x"),
        (["--erase", "1", "--n-steps"], "Missing value for argument '--n-steps'"),
        (["--erase", "1", "--strength"], "--strength has no value; give it one or leave it off"),
        (["--erase", "1", "--steps", "0.2"], "Missing value for argument '--steps'. Expected 2 values"),
        (["--erase", "1", "--dtype", "int8"], "--dtype: 'int8' is not a number type; use bf16, fp16 or fp32"),
        (["--erase", "1", "--out", ""], "--out is empty; give it a value or leave it off"),
        (["word", "--erase", "1"], "Unrecognized options: word"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_faulty_line_is_one_line(cli, words, message):
    least = [] if not words else ["--sae", "s", "--prompt", "p", "--out", "o"]
    result = cli("edit", *least, *words)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    if words:
        assert message in result.err
    else:
        assert set(message.replace(",", "").split()[1:]) <= set(result.err.replace(",", "").replace(";", "").split())


def test_a_message_is_not_broken_at_the_width_of_a_terminal(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    option = f"--{'x' * 200}"
    assert option in cli("doctor", option).err
    assert os.environ["COLUMNS"] == "40"


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
        return {"headline": "It works.", "config": {"seed": 3}}

    monkeypatch.setattr("tide.studies.demo.demo", demo)
    result = cli("demo", "--fast", "--out", tmp_path / "d", "--seed", 3, "--backend", "reference")
    assert result.code == 0
    assert result.out == f"It works.\nThe report is {tmp_path}/d/report.html.\n"
    assert given.pop("made_by")["command"] == "demo"
    assert given == {"out": tmp_path / "d", "fast": True, "seed": 3, "backend": "reference", "resume": False}
    holds = contents(tmp_path / "d")
    assert (holds.kind, holds.blocks, holds.family, holds.pipeline) == ("study", [6], "pixart", "scenes")
    assert {"transformer", "vae", "scheduler"} <= holds.weights.keys()
    assert (holds.configuration, holds.measured) == ({"seed": 3}, {"headline": "It works."})
    assert read_run(tmp_path / "d")["seed"] == 3


def test_the_bars_are_a_study(cli, checkpoint, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr("tide.studies.bars.reproduce", lambda options: given.append(options) or "met  It reconstructs.")
    result = cli("reproduce", "bars", "--sae", checkpoint, "--prompts", 4, "--fast", "--out", tmp_path / "e")
    assert "met  It reconstructs." in result.out
    (options,) = given
    assert (options.sae, options.prompts, options.edit_prompts) == (checkpoint, 4, None)
    assert (options.out, options.fast, options.seed, options.backend) == (tmp_path / "e", True, 0, "auto")


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
    assert result.err.startswith(f"tide: error: {option}: '{value}' is not a")
    assert result.err.count("\n") == 1


def test_a_torchvision_of_another_torch(cli, monkeypatch):
    """Every import of diffusers fails beside it, in words that do not name it."""

    def fails():
        raise RuntimeError("Failed to import diffusers.loaders.peft because of the following error: PreTrainedModel")

    monkeypatch.setattr(doctor, "examine", fails)
    with pytest.raises(RuntimeError, match="Failed to import"):
        main(["doctor"])
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    result = cli("doctor")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "beside this torchvision, which was built for another torch; install torchvision from where" in result.err


# -- interruptions, locks, places that cannot be written -----------------------------------------------------------

#: Of every command that writes: the least that makes it begin.
WRITERS = {
    "demo": [],
    "evaluate": ["--sae", "{sae}", "--data", "{images}"],
    "sweep": ["--sae", "{sae}", "--data", "{images}"],
    "concepts": ["--sae", "{sae}", "--data", "{images}", "--concepts", "near"],
    "atlas": ["--sae", "{sae}", "--data", "{images}"],
    "trajectory": ["--sae", "{sae}", "--prompt", "near"],
    "effect": ["--sae", "{sae}", "--prompt", "near", "--towards", "far"],
    "edit": ["--sae", "{sae}", "--prompt", "near", "--erase", "1"],
    "score": ["--before", "{images}", "--after", "{images}", "--judge"],
    "reproduce": ["fig4"],
    "reproduce the bars": ["bars", "--sae", "{sae}"],
}


@pytest.fixture
def begin(cli, checkpoint, images):
    """Runs a command of :data:`WRITERS` into a folder."""

    def run(name: str, out: object, *further: object):
        words = [word.format(sae=checkpoint, images=images) for word in WRITERS[name]]
        return cli(name.split()[0], *words, *further, "--out", out)

    return run


@pytest.fixture
def no_work(monkeypatch):
    """What loads, trains or measures is a failure."""

    def work(*args: object, **options: object) -> None:
        pytest.fail("work was begun")

    monkeypatch.setattr("tide.loading._from_pretrained", work)
    monkeypatch.setattr("tide.scenes.judge_scorer.load_judge", work)
    monkeypatch.setattr("tide.studies.demo.demo", work)
    monkeypatch.setattr("tide.studies.bars.reproduce", work)
    monkeypatch.setattr("tide.studies.fig4.reproduce", work)


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.usefixtures("no_work")
def test_a_folder_that_another_run_writes_is_refused(begin, tmp_path, command):
    with lock_folder(tmp_path / "out"):
        result = begin(command, tmp_path / "out")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"tide: error: {tmp_path}/out is being written by this process already; wait for it or choose another folder\n"
    )


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize("place", ["file/out", "x" * 300, "/proc/none/out"], ids=["a file", "a long name", "no folder"])
@pytest.mark.usefixtures("no_work")
def test_a_place_that_cannot_be_written_is_found_before_any_work(begin, tmp_path, monkeypatch, command, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    result = begin(command, place)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"tide: error: {place} cannot be written (")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.usefixtures("no_work")
def test_a_damaged_record_of_the_folder_is_found_before_any_work(begin, tmp_path, command):
    (tmp_path / "run.json").write_text("{")
    result = begin(command, tmp_path)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith(f"tide: error: {tmp_path}/run.json is not valid JSON")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.usefixtures("no_work")
def test_a_place_for_the_target_that_cannot_be_written_is_found_before_any_work(cli, checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    words = ["--sae", checkpoint, "--prompt", "near", "--towards", "far", "--out", tmp_path / "out"]
    result = cli("edit", *words, "--save-target", tmp_path / "file/target")
    assert result.err.startswith(f"tide: error: {tmp_path}/file cannot be written (")
    result = cli("edit", *words, "--save-target", tmp_path)
    assert result.err == f"tide: error: {tmp_path} is a folder; give --save-target the name of a file\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(number=signal.SIGTERM), 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_run_leaves_no_empty_folder(begin, tmp_path, monkeypatch, command, stop, code):
    def work(*args: object, **options: object) -> None:
        assert (tmp_path / "new/out").is_dir()
        raise stop

    for place in ("tide.loading._from_pretrained", "tide.studies.demo.demo", "tide.studies.bars.reproduce"):
        monkeypatch.setattr(place, work)
    monkeypatch.setattr("tide.studies.fig4.reproduce", work)
    monkeypatch.setattr("tide.scenes.judge_scorer.load_judge", work)
    monkeypatch.chdir(tmp_path)
    result = begin(command, tmp_path / "new/out")
    assert (result.code, result.err.count("\n")) == (code, 1)
    kept = {
        "demo": "training checkpoints already written are kept; rerun with --resume to continue",
        "reproduce the bars": "finished cells are kept",
        "reproduce": "finished cells are kept",
    }
    assert result.err.startswith(f"tide: interrupted; {kept.get(command, 'nothing was written')}")
    assert not list(tmp_path.iterdir())


def test_an_interruption_while_files_are_written(begin, tmp_path, monkeypatch):
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tide.interpretation.atlas.Atlas.save", interrupted)
    result = begin("atlas", tmp_path / "out", "--images", 2, "--timesteps", 1)
    assert (result.code, sorted(path.name for path in (tmp_path / "out").iterdir())) == (130, ["atlas.html"])
    assert result.err.startswith(f"tide: interrupted; some of its files are in {tmp_path}/out")


def test_sigterm(tmp_path):
    """As Ctrl-C, in a process of its own: what it opened is closed and what it made is removed."""
    code = (
        "import os, signal, sys; from tide.cli.app import main\n"
        "import tide.studies.demo\n"
        "tide.studies.demo.demo = lambda *args, **options: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.exit(main(['demo', '--out', {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (143, 1), done.stderr
    assert done.stderr.startswith("tide: interrupted; ")
    assert not (tmp_path / "out").exists()


def test_handlers_of_others_stay(cli):
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert cli("doctor").code == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert cli("doctor").code == 0
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["Python", "GPU", "CPU"],
)
def test_memory_that_is_used_up_is_one_line(cli, monkeypatch, error):
    def fails() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fails)
    result = cli("doctor")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith("tide: error: the memory is used up; ")


def test_a_value_error_of_a_library_is_a_bug(monkeypatch):
    """What bad input causes is a TideError; a length that does not fit is a fault of the program."""

    def broken() -> None:
        list(zip([1], [1, 2], strict=True))

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(ValueError, match="longer"):
        main(["doctor"])


def test_an_edit_that_overflows_writes_nothing(begin, tmp_path):
    """Latents of the sampling run that are not finite would be drawn as black."""
    result = begin("edit", tmp_path / "out", "--guidance", "3e38", "--n-steps", 2)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert result.err.startswith("tide: error: what the pipeline draws is not finite; lower ")
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_memory_holds(begin, tmp_path):
    result = begin("edit", tmp_path / "out", "--size", 65536)
    assert result.code == 2
    assert "65536 x 65536 pixels takes" in result.err
    assert not (tmp_path / "out").exists()

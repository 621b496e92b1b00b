"""`tide score`: the table, score.json and run.json of two folders of pictures, and one line for what does not fit."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tests.helpers.image_folders import save
from tests.helpers.scored_sets import MeanDistance
from tests.helpers.tiny_clip import save_tiny_clip
from tide.evaluation.scorers import CLIPScorer, SetScorers, StubScorer, score_folders
from tide.pictures import to_image
from tide.runs import contents
from tide.scenes import images_of, prompts
from tide.scenes.judge_scorer import JudgeScorer

PAIRS = prompts("test", 6, 1)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("the network was tried")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Six scenes, and the same in blue."""
    place = tmp_path_factory.mktemp("scored")
    scenes = [scene for scene, _ in PAIRS]
    for name, drawn in (("a", scenes), ("b", [scene.changed("colour", "blue") for scene in scenes])):
        (place / name).mkdir()
        for i, image in enumerate(images_of(drawn)):
            to_image(image).save(place / name / f"{i}.png")
    (place / "p.txt").write_text("\n".join(scene.cls for scene in scenes))
    return place / "a", place / "b"


class StubLPIPS(StubScorer):
    """In place of LPIPS, which needs torchvision."""

    def __init__(self, weights: str, *, device: object) -> None:
        super().__init__()


class StubFID(MeanDistance):
    """In place of FID, which needs weights."""

    def __init__(self, weights: str, *, device: object) -> None:
        super().__init__()


@pytest.fixture
def stubs(monkeypatch):
    monkeypatch.setattr("tide.evaluation.scorers.LPIPSScorer", StubLPIPS)
    monkeypatch.setattr("tide.evaluation.scorers.FIDScorer", StubFID)


def cells(out: str) -> dict[str, list[str]]:
    """The rows of the printed table by their titles; cells are two or more blanks apart."""
    lines = [line for line in out.split("\n\n")[0].splitlines()[1:] if not line.startswith("±")]
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {title: rest for title, *rest in rows}


@pytest.mark.usefixtures("stubs")
def test_everything_in_one_table(cli, folders, clip, tmp_path):
    before, after = folders
    asked = ["--clip", clip, "--prompts", before.parent / "p.txt", "--lpips", "alexnet", "--inception", "inception"]
    result = cli("score", "--before", before, "--after", after, *asked, "--judge", "--batch-size", 4, "--out", tmp_path)
    assert (result.code, result.err) == (0, "")
    found = json.loads((tmp_path / "score.json").read_text())
    scorers = SetScorers(
        inception=StubFID("", device="cpu"),
        clip=CLIPScorer(clip),
        lpips=StubLPIPS("", device="cpu"),
        judge=JudgeScorer(),
    )
    expected = score_folders(before, after, scorers, prompts=before.parent / "p.txt", batch_size=4)
    assert found == json.loads(json.dumps(expected))
    rows = cells(result.out)
    assert rows["FID, Inception"][-1] == f"{found['fid']['inception']:.3f}"
    assert rows["CMMD, the judge"][-1] == f"{found['cmmd']['judge']['biased']:.3f}"
    assert rows["CMMD, CLIP, unbiased"][-1] == f"{found['cmmd']['clip']['unbiased']:.3f}"
    text = [f"{found['clip_text'][name]['mean']:.4f}" for name in ("before", "after", "change")]
    assert [cell.split()[0] for cell in rows["CLIP, picture and prompt"]] == text
    assert rows["LPIPS"][-1].startswith(f"{found['lpips']['mean']:.4f} ±")
    assert rows["no valid object"] == ["0.0000", "0.0000", "-"]
    last = result.out.splitlines()[-1]
    assert last.startswith("Scored 6 pictures before and 6 after (6 pairs): FID ")
    assert last.endswith(f"of the attributes as before; see {tmp_path / 'score.json'}.")
    holds = contents(tmp_path)
    assert (holds.kind, holds.data["images"]) == ("score", {"before": 6, "after": 6, "pairs": 6})
    assert (holds.data["before"], holds.configuration["device"]) == (str(before), "cpu")
    assert holds.measured["lpips"] == found["lpips"]


def test_the_table_names_the_option_of_what_is_left_out(cli, folders, clip, tmp_path):
    where = ["--before", folders[0], "--after", folders[1], "--out", tmp_path]
    rows = cells(cli("score", *where, "--judge").out)
    needs = {
        "FID, Inception": "--inception FILE",
        "CMMD, CLIP": "--clip DIR",
        "CLIP, picture and prompt": "--clip DIR",
        "CLIP, picture and picture": "--clip DIR",
        "LPIPS": "--lpips FILE",
    }
    assert {title: row[-1] for title, row in rows.items() if title in needs} == {
        title: f"needs {option}" for title, option in needs.items()
    }
    rows = cells(cli("score", *where, "--clip", clip).out)
    assert rows["CLIP, picture and prompt"][-1] == "needs --prompts FILE"
    assert rows["attributes as before"][-1] == "needs --judge"
    assert "FID, the judge" not in rows


def test_folders_without_a_common_name(cli, folders, clip, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in folders[1].glob("*.png"):
        (other / f"edited-{path.name}").write_bytes(path.read_bytes())
    result = cli(
        "score", "--before", folders[0], "--after", other, "--judge", "--clip", clip, "--out", tmp_path / "out"
    )
    rows = cells(result.out)
    assert rows["CLIP, picture and picture"][-1] == rows["attributes as before"][-1] == "needs common names"
    assert float(rows["FID, the judge"][-1]) > 0
    assert "6 after (0 pairs): " in result.out.splitlines()[-1]


def test_bad_input_is_one_line_before_any_model_is_loaded(cli, folders, clip, tmp_path, monkeypatch):
    for name in ("CLIPScorer", "FIDScorer", "LPIPSScorer"):
        monkeypatch.setattr(f"tide.evaluation.scorers.{name}", lambda *_a, **_k: pytest.fail("a model was loaded"))
    before, after = folders
    (tmp_path / "empty").mkdir()
    save(tmp_path / "one/x.png")
    three = tmp_path / "three.txt"
    three.write_text("a\nb\nc\n")
    empty, one, out = tmp_path / "empty", tmp_path / "one", tmp_path / "out"
    for words, message in (
        ([before, after], "nothing scores the pictures; give --clip, --lpips, --inception or --judge"),
        ([before, after, "--judge", "--prompts", three], "--prompts is not used without --clip; leave it off"),
        ([before, empty, "--judge"], f"{empty} holds no images; add some (.png, "),
        ([before, tmp_path / "none", "--judge"], f"{tmp_path / 'none'} is not a folder; give one that holds images"),
        ([before, one, "--judge"], f"{one}/ holds 1 picture and FID needs 2; add some"),
        ([before, one, "--inception", "x"], f"{one}/ holds 1 picture and FID needs 2; add some"),
        ([before, one, "--lpips", "x"], f"{before}/ and {one}/ have no file name in common, and LPIPS compares"),
        ([before, after, "--clip", clip, "--prompts", three], f"{three} holds 3 prompts and {before}/ 6 pictures; "),
        ([before, after, "--judge", "--device", "abacus"], "device 'abacus' is not supported; use cpu"),
    ):
        result = cli("score", "--before", words[0], "--after", words[1], *words[2:], "--out", out)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result
        assert result.err.startswith(f"tide: error: {message}")
        assert not out.exists()


def test_weights_that_are_missing(cli, folders, tmp_path):
    none, where = tmp_path / "none", ["--before", folders[0], "--after", folders[1], "--out", tmp_path / "out"]
    for option, message in (
        ("--clip", f"{none} is not a folder; give the folder of a CLIP model as transformers saves it ("),
        ("--lpips", f"{none} does not exist; put one of torchvision's alexnet-owt-7be5be79.pth, vgg16-"),
        ("--inception", f"{none} does not exist; put torch-fidelity's weights-inception-2015-12-05-6726825d.pth as"),
    ):
        result = cli("score", *where, option, none)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert result.err.startswith(f"tide: error: {message}")
        assert not (tmp_path / "out").exists()

"""`tide edit --clip --lpips`: scores of what was drawn, in edit.json and in words."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.tiny_clip import save_tiny_clip
from tide import TIDE
from tide.evaluation.scorers import CLIPScorer, StubScorer
from tide.images.tensors import to_tensor
from tide.sae import TIDEConfig

PROMPT, TOWARDS = "a red house", "a blue cone"


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
def sae(pipeline, tmp_path_factory) -> Path:
    """Untrained, for block 6 of the random pipeline."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TIDE(TIDEConfig(192, 96, 8, block=6, family="pixart", pipeline=str(pipeline)))
    path = tmp_path_factory.mktemp("sae")
    model.save_pretrained(path)
    return path


class StubLPIPS(StubScorer):
    """In place of LPIPS, which needs torchvision."""

    def __init__(self, weights: str) -> None:
        super().__init__()


@pytest.fixture
def edit(cli, sae, tmp_path, monkeypatch):
    """Runs ``tide edit``; returns edit.json and the last line."""
    monkeypatch.setattr("tide.evaluation.scorers.LPIPSScorer", StubLPIPS)

    def run(*options: object) -> tuple[dict, str]:
        result = cli("edit", "--sae", sae, "--prompt", PROMPT, "--n-steps", 2, *options, "--out", tmp_path / "out")
        assert (result.code, result.err) == (0, "")
        return json.loads((tmp_path / "out/edit.json").read_text()), result.out.splitlines()[-1]

    return run


def test_scores_of_an_edit(edit, clip, tmp_path):
    """Those of the saved images; at strength 0 nothing has changed."""
    report, line = edit("--towards", TOWARDS, "--strength", 0, 1, 2, "--clip", clip, "--lpips", "alexnet.pth")
    images = {
        name: to_tensor(Image.open(tmp_path / f"out/{name}.png"), 64)[None]
        for name in ("before", "after-0", "after-1", "after-2")
    }
    scorer, rows = CLIPScorer(clip), [report["scores"]["before"], *report["edits"]]
    for image, row in zip(images.values(), rows, strict=True):
        expected = [float(scorer.similarity(image, [text])) for text in (PROMPT, TOWARDS)]
        assert list(row["clip"]) == ["prompt", "towards"]
        assert list(row["clip"].values()) == pytest.approx(expected, abs=1e-6)
    assert "lpips" not in rows[0]
    for image, row in zip(list(images.values())[1:], rows[1:], strict=True):
        assert row["lpips"] == pytest.approx(float((image - images["before"]).square().mean()), rel=1e-5)
    assert rows[1]["clip"] == rows[0]["clip"]
    assert [row["lpips"] > 0 for row in rows[1:]] == [False, True, True]
    assert [row["strength"] for row in report["edits"]] == [0, 1, 2]
    assert report["scores"]["scorers"] == {"clip": scorer.provenance, "lpips": StubLPIPS("").provenance}
    numbers = [
        f"CLIP with --{name} {rows[0]['clip'][name]:.3f} -> " + ", ".join(f"{r['clip'][name]:.3f}" for r in rows[1:])
        for name in ("prompt", "towards")
    ]
    lpips = "LPIPS " + ", ".join(f"{row['lpips']:.3f}" for row in rows[1:])
    assert line.startswith("Edited block 6: pixels moved by 0.0 at strength 0, ")
    assert line.endswith(f" (mean, of 255); {numbers[0]}; {numbers[1]}; {lpips}; see {tmp_path / 'out/strip.png'}.")


def test_clip_alone_of_an_edit_without_a_target(edit, clip):
    report, line = edit("--erase-top", 8, "--clip", clip)
    (row,) = report["edits"]
    assert set(row) == {"strength", "mean_pixel_change", "clip"}
    assert list(row["clip"]) == ["prompt"]
    assert list(report["scores"]["scorers"]) == ["clip"]
    assert "CLIP with --prompt" in line
    assert "--towards" not in line
    assert "LPIPS" not in line


def test_lpips_alone(edit):
    report, line = edit("--erase-top", 8, "--lpips", "alexnet.pth")
    assert report["edits"][0]["lpips"] > 0
    assert report["scores"]["before"] == {}
    assert "(mean, of 255); LPIPS 0." in line


def test_no_scores(edit):
    report, line = edit("--erase-top", 8)
    assert set(report) == {"edits", "sae"}
    assert set(report["edits"][0]) == {"strength", "mean_pixel_change"}
    assert "(mean, of 255); see " in line


def test_paths_are_checked_before_anything_is_loaded_or_drawn(cli, clip, sae, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.loading._from_pretrained", lambda *_a, **_k: pytest.fail("the pipeline was loaded"))
    none, out = tmp_path / "none", tmp_path / "out"
    command = ["edit", "--sae", sae, "--prompt", PROMPT, "--erase", 1, "--out", out]
    for options, message in (
        (["--clip", none], f"{none} is not a folder; give the folder of a CLIP model as transformers saves it ("),
        (["--lpips", none], f"{none} does not exist; put one of torchvision's alexnet-owt-7be5be79.pth, vgg16-"),
        (["--clip", clip, "--lpips", none], f"{none} does not exist; put one of torchvision's"),
    ):
        result = cli(*command, *options)
        assert result.code == 2
        assert result.err.startswith(f"tide: error: {message}")
        assert result.err.count("\n") == 1
        assert not out.exists()

"""Commands that show clips, on a tiny pipeline of videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.helpers import families
from tests.helpers.clips import clip_folder
from tide.sae import TIDE, TIDEConfig

N, N_LATENTS, FRAMES = 8, 32, 3


def test_the_commands(cli: Callable[..., object], tmp_path: Path) -> None:
    """``tide concepts`` writes what moves, ``tide atlas`` a page of clips and the index that ``tide browse`` opens."""
    pipe = families.pipeline("latte")
    pipe.save_pretrained(tmp_path / "latte")
    TIDE(TIDEConfig(32, N_LATENTS, 8, family="latte", block=1), seed=0).save_pretrained(tmp_path / "tide")
    folder = clip_folder(tmp_path / "clips", N, FRAMES, (64, 32))
    given = ["--sae", tmp_path / "tide", "--pipeline", tmp_path / "latte", "--data", folder, "--size", "3x64x32"]
    result = cli(
        "concepts",
        *given,
        "--timesteps",
        1,
        "--concepts",
        "moves",
        "--images-per-concept",
        4,
        "--out",
        tmp_path / "concepts",
    )
    assert result.code == 0, result.err
    with Image.open(tmp_path / "concepts" / "moves.webp") as picture:
        assert picture.n_frames == FRAMES
    result = cli("atlas", *given, "--timesteps", 1, "--index", "--out", tmp_path / "atlas")
    assert result.code == 0, result.err
    assert '"frames":{"total":3,"tokens":3,' in (tmp_path / "atlas" / "atlas.html").read_text()
    result = cli("browse", tmp_path / "atlas", "--export", tmp_path / "export")
    assert result.code == 0, result.err
    (facts,) = (tmp_path / "export" / "api" / "runs").glob("*/facts.json")
    assert '"frames":{"total":3,"tokens":3,"shown":[0,1,2],"map":[0,1,2]' in facts.read_text()

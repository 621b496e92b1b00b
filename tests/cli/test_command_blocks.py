"""Commands that take a folder of several blocks' checkpoints: what they write, and what they refuse in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.helpers.cli_samples import SMALL
from tide.cli.app import main
from tide.runs import contents

EVALUATE = ["--loss-timesteps", 1, "--loss-images", 2]
SWEEP = ["--timesteps", 1, "--loss-images", 2]


@pytest.fixture(scope="session")
def folder(store, pipeline, tmp_path_factory) -> Path:
    """A set of blocks 3 and 6."""
    path = tmp_path_factory.mktemp("sets") / "set"
    for block in (3, 6):
        words = ["train", "--store", store / f"block-{block}", "--pipeline", pipeline, "--steps", "2", *SMALL]
        assert main([*map(str, words), "--out", str(path / f"block-{block}")]) == 0
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_evaluate(cli, folder, images, tmp_path):
    """A row a block and the mean; each block's figures are those of its own evaluation."""
    result = cli("evaluate", "--sae", folder, "--data", images, *EVALUATE, "--out", tmp_path / "out")
    assert (result.code, result.err.count("error")) == (0, 0)
    rows = [line.split("  ")[0] for line in result.out.split("\n\n")[1].splitlines()[1:]]
    assert rows == ["block 3", "block 6", "mean"]
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    cli("evaluate", "--sae", folder / "block-6", "--data", images, *EVALUATE, "--out", tmp_path / "one")
    assert found["blocks"]["6"] == json.loads((tmp_path / "one" / "metrics.json").read_text())
    holds = contents(tmp_path / "out")
    assert holds.blocks == [3, 6]
    assert holds.autoencoder["folder"] == str(folder)
    assert holds.autoencoder["blocks"]["3"]["folder"] == str(folder / "block-3")
    assert holds.measured["cosine"] == found["average"]["models"]["tide"]["cosine"]


def test_one_block_of_a_set_is_as_its_checkpoint(cli, folder, images, tmp_path):
    cli("evaluate", "--sae", folder, "--block", 6, "--data", images, *EVALUATE, "--out", tmp_path / "set")
    cli("evaluate", "--sae", folder / "block-6", "--data", images, *EVALUATE, "--out", tmp_path / "one")
    first, second = (tmp_path / name / "metrics.json" for name in ("set", "one"))
    assert first.read_text() == second.read_text()
    assert contents(tmp_path / "set").autoencoder == contents(tmp_path / "one").autoencoder


def test_concepts(cli, folder, images, tmp_path):
    options = ["--concepts", "near", "--images-per-concept", 4, "--timesteps", 1]
    out = tmp_path / "out"
    result = cli("concepts", "--sae", folder, "--data", images, *options, "--out", out)
    assert result.code == 0
    assert result.out.splitlines()[0].split() == "concept best block latent auroc neuron on 3 on 6".split()
    found = json.loads((out / "concepts.json").read_text())
    cli("concepts", "--sae", folder / "block-3", "--data", images, *options, "--out", tmp_path / "one")
    alone = json.loads((tmp_path / "one" / "concepts.json").read_text())
    assert found["blocks"]["3"] == alone == json.loads((out / "block-3" / "concepts.json").read_text())
    assert (out / "block-6" / "near.png").is_file()
    assert contents(out).blocks == [3, 6]
    assert contents(out / "block-6").blocks == [6]


def test_the_best_block_of_a_concept_of_scenes(cli, folder, tmp_path):
    options = ["--pipeline", "scenes", "--concepts", "near", "--images-per-concept", 24, "--timesteps", 1]
    out = tmp_path / "out"
    assert cli("concepts", "--sae", folder, *options, "--out", out).code == 0
    found = json.loads((out / "concepts.json").read_text())
    areas = {int(block): table["concepts"]["near"]["auroc"] for block, table in found["blocks"].items()}
    assert found["best"]["near"]["block"] == max(areas, key=lambda block: areas[block])
    assert found["best"]["near"]["auroc"] == max(areas.values())


def test_sweep(cli, folder, images, tmp_path, monkeypatch):
    """The page, the figures, and the folder of finished blocks, from which the same command resumes."""
    words = ["sweep", "--sae", folder, "--data", images, *SWEEP, "--out", tmp_path / "out"]
    result = cli(*words)
    assert (result.code, result.err.count("error")) == (0, 0)
    assert [line.split("  ")[0] for line in result.out.splitlines()[1:4]] == ["block 3", "block 6", "mean"]
    assert "What 2 blocks hold" in (tmp_path / "out" / "sweep.html").read_text()
    found = (tmp_path / "out" / "sweep.json").read_text()
    assert sorted(each.name for each in (tmp_path / "out" / "blocks").iterdir()) == [
        "block-3.json", "block-6.json", "images.json",
    ]  # fmt: skip
    monkeypatch.setattr("tide.evaluation.layer_sweep.image_losses", lambda *_, **__: pytest.fail("measured again"))
    assert cli(*words).code == 0
    assert (tmp_path / "out" / "sweep.json").read_text() == found
    other = cli(*words, "--seed", 1)
    assert other.code == 2
    assert other.err.startswith(f"tide: error: {tmp_path}/out/blocks/block-3.json was made with other options (seed 0")


def test_an_interrupted_sweep_says_what_is_kept(cli, folder, images, tmp_path, monkeypatch):
    from tide.evaluation import layer_sweep

    measure, done = layer_sweep._Measure.block, []

    def stop(self, model, tokens):
        if done:
            raise KeyboardInterrupt
        done.append(model)
        return measure(self, model, tokens)

    monkeypatch.setattr(layer_sweep._Measure, "block", stop)
    out = tmp_path / "out"
    result = cli("sweep", "--sae", folder, "--data", images, *SWEEP, "--out", out)
    assert result.code == 130
    assert result.err.endswith(f"tide: interrupted; finished blocks are in {out}/blocks, the same command resumes\n")
    assert not (out / "sweep.html").exists()


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(cli, images, tmp_path):
    """The line with which each of the three commands refuses a set; nothing is written."""

    def run(sae: Path, *further: object) -> str:
        lines = set()
        for command in (["evaluate"], ["concepts", "--concepts", "near"], ["sweep"]):
            result = cli(*command, "--sae", sae, "--data", images, *further, "--out", tmp_path / "out")
            assert (result.code, result.err.count("\n")) == (2, 1)
            lines.add(result.err.removeprefix("tide: error: ").strip())
            assert not (tmp_path / "out").exists()
        (line,) = lines
        return line

    return run


def test_a_half_written_member(refused, copy):
    (copy / "block-6" / "model.safetensors").unlink()
    assert refused(copy).startswith(f"{copy}/block-6 is not a whole checkpoint (")


def changed(folder: Path, **options: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def test_a_member_of_another_family(refused, copy, pipeline):
    changed(copy / "block-6", family="flux")
    assert refused(copy, "--pipeline", pipeline) == (
        f"{copy}/block-6 is of the family 'flux' and block-3 beside it of 'pixart'; "
        "give a folder whose checkpoints were trained together"
    )


def test_a_block_that_the_pipeline_does_not_have(refused, copy, pipeline):
    (copy / "block-6").rename(copy / "block-9")
    changed(copy / "block-9", block=9)
    assert refused(copy) == f"{copy}/block-9 is of a block that does not exist; this transformer has blocks 0..7"


def test_a_block_that_the_set_does_not_have(refused, copy):
    assert refused(copy, "--block", 3, 5) == f"{copy} holds no block 5; it holds 3, 6"


def test_commands_of_one_block_say_which_to_give(cli, folder, images, tmp_path):
    for words in (["atlas", "--data", images], ["edit", "--prompt", "a house", "--erase", 1]):
        result = cli(*words, "--sae", folder, "--out", tmp_path / "out")
        message = f"{folder} holds the checkpoints of several blocks; give one of them, such as {folder}/block-3"
        assert result == (2, "", f"tide: error: {message}\n")


def test_a_folder_without_checkpoints(refused, tmp_path):
    assert refused(tmp_path).startswith(f"{tmp_path}/config.json does not exist; check the path")


def test_a_checkpoint_is_of_one_block(refused, folder):
    assert refused(folder / "block-6", "--block", 6, 3) == (
        f"{folder}/block-6 was trained on block 6, not 3; use a checkpoint made for this block"
    )

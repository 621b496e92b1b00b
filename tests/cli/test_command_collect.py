"""`tide collect`: interrupted and resumed, several blocks, along sampling, what it leaves behind when it fails."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Sequence

import pytest
import torch

from tests.helpers.cli_samples import N_IMAGES
from tide.activations import ActivationStore, StoreWriter, stores
from tide.activations.batch import ActivationBatch
from tide.images.identity import Sample
from tide.runs import contents

#: Images that are not held out.
KEPT = N_IMAGES - 1


def all_rows(path) -> ActivationBatch:
    found = ActivationStore(path)
    return ActivationBatch.cat([found.read(i) for i in range(len(found.shards))])


def same(a: ActivationBatch, b: ActivationBatch) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.sample, b.sample) and torch.equal(a.token, b.token)


def test_resume_continues_where_it_was_interrupted(cli, pipeline, images, store, tmp_path, monkeypatch):
    """Ctrl-C falls between the stores of two blocks: the one that is behind catches up."""
    monkeypatch.setattr(stores, "SMALLEST_SHARD", 1)
    options = ["--token-fraction", "1/2", "--batch-size", "4", "--block", "3", "penultimate"]
    command = ["collect", "--pipeline", pipeline, "--data", images, "--out", tmp_path / "store", *options]
    add, calls = StoreWriter.add, []

    def interrupted(writer: StoreWriter, batch: ActivationBatch, samples: Sequence[Sample]) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        add(writer, batch, samples)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "add", interrupted)
        result = cli(*command)
    assert result.code == 130
    assert result.err == "tide: interrupted; whole shards are kept; rerun with --resume to continue\n"
    assert len(ActivationStore(tmp_path / "store/block-3"))
    assert not (tmp_path / "store/block-6/manifest.json").exists()
    assert cli(*command, "--resume").code == 0
    for block in ("block-3", "block-6"):
        assert same(all_rows(tmp_path / "store" / block), all_rows(store / block))


def test_resume_of_a_whole_store_extends_it(cli, pipeline, images, tmp_path):
    command = ["collect", "--pipeline", pipeline, "--data", images, "--out", tmp_path / "store", "--block", 1]
    assert cli(*command, "--images", 3).code == 0
    assert cli(*command, "--images", 3, "--resume").code == 0
    assert len(ActivationStore(tmp_path / "store")) == 3 * 2 * 4
    result = cli(*command, "--images", 2, "--resume")
    assert result.out.splitlines()[-1].startswith("Collected 24 activations of 3 images from block 1: ")
    assert cli(*command, "--resume").code == 0
    assert sorted(set(all_rows(tmp_path / "store").sample.tolist())) == list(range(KEPT))


def test_resume_with_other_options_is_refused(cli, pipeline, images, tmp_path):
    command = ["collect", "--pipeline", pipeline, "--data", images, "--out", tmp_path, "--block", 1, "--images", 2]
    assert cli(*command).code == 0
    assert cli(*command, "--resume", "--seed", 1) == (
        2,
        f"2 of the {N_IMAGES} images of {images}/, block 1: about 12.6 KB on disk\n"
        f"1 of the {N_IMAGES} images of {images}/ is held out\n",
        f"tide: error: {tmp_path} was collected with other options (seed 0, now 1); "
        "use the same options or another folder\n",
    )
    assert cli(*command).err == (
        f"tide: error: {tmp_path} already holds activations; resume, or choose another folder\n"
    )


def test_the_estimate_is_what_it_takes(cli, narrow_pipeline, images, tmp_path):
    """Conditioned on the image's size, which is stored as well."""
    options = ["--size", 64, "--block", 1, "--token-fraction", 1]
    result = cli("collect", "--pipeline", narrow_pipeline, "--data", images, "--out", tmp_path / "s", *options)
    assert result.code == 0
    assert result.err == ""
    first, held_out, last = result.out.splitlines()
    assert held_out == f"1 of the {N_IMAGES} images of {images}/ is held out"
    assert first == f"{KEPT} of the {N_IMAGES} images of {images}/, block 1: about 243 KB on disk"
    size = sum(file.stat().st_size for file in (tmp_path / "s").glob("shard-*"))
    assert size == pytest.approx(243e3, rel=0.01)
    assert last.startswith(f"Collected {KEPT * 2 * 64} activations of {KEPT} images from block 1")


def test_along_sampling(cli, pipeline, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red house\n\na blue tree\n")
    options = ["--sampling", "--prompts", prompts, "--timesteps", 4, "--token-fraction", "1/4"]
    assert cli("collect", "--pipeline", pipeline, *options, "--no-pairs", "--out", tmp_path / "steps").code == 0
    single = ActivationStore(tmp_path / "steps")
    assert len(single) == 2 * 4 * 16
    assert not single.paired
    assert single.info["mode"] == "sampling"
    assert cli("collect", "--pipeline", pipeline, *options, "--out", tmp_path / "pairs").code == 0
    assert len(ActivationStore(tmp_path / "pairs")) == 2 * 6 * 16


def test_one_image_is_counted_as_one(cli, pipeline, tmp_path):
    options = ["--data", "scenes", "--images", 1, "--block", 0]
    result = cli("collect", "--pipeline", pipeline, *options, "--out", tmp_path / "s")
    assert result.out.splitlines()[-1].startswith("Collected 8 activations of 1 image from block 0: ")
    options += ["--no-pairs", "--token-fraction", "1/64"]
    result = cli("collect", "--pipeline", pipeline, *options, "--out", tmp_path / "t")
    assert result.out.splitlines()[-1].startswith("Collected 1 activation of 1 image from block 0: ")


def test_scenes_as_data(cli, pipeline, tmp_path):
    options = ["--data", "scenes", "--images", 5, "--block", 0]
    assert cli("collect", "--pipeline", pipeline, *options, "--out", tmp_path / "s").code == 0
    assert len(ActivationStore(tmp_path / "s")) == 5 * 2 * 4


def test_unreadable_images_can_be_skipped(cli, pipeline, images, tmp_path, recwarn):
    (tmp_path / "data").mkdir()
    for i in range(3):
        (tmp_path / "data" / f"{i}.png").write_bytes((images / f"0{i}.png").read_bytes())
    (tmp_path / "data/1.png").write_bytes(b"no image")
    command = ["collect", "--pipeline", pipeline, "--data", tmp_path / "data", "--block", 0, "--out", tmp_path / "s"]
    command += ["--hold-out", 0]
    result = cli(*command)
    assert result.code == 2
    assert result.err == (
        f"tide: error: {tmp_path}/data/1.png is not a readable image (damaged, or of another format); "
        "give a whole one (PNG, JPEG, WEBP, BMP), or skip unreadable images\n"
    )
    assert not (tmp_path / "s").exists()
    assert cli(*command, "--skip-unreadable").code == 0
    assert len(ActivationStore(tmp_path / "s")) == 2 * 2 * 4


def test_a_full_disk_is_found_before_anything_is_written(cli, pipeline, images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    result = cli("collect", "--pipeline", pipeline, "--data", images, "--block", 3, "--out", tmp_path / "s")
    assert (result.code, result.err) == (
        2,
        f"tide: error: 56.5 KB of activations are expected and the disk of {tmp_path}/s has 10 B free; "
        "free some space, choose another folder or collect fewer tokens or images\n",
    )
    assert not (tmp_path / "s").exists()


def test_quota(cli, pipeline, images, tmp_path):
    options = ["--block", 3, "--quota", "10KB", "--out", tmp_path / "s"]
    result = cli("collect", "--pipeline", pipeline, "--data", images, *options)
    assert result.code == 2
    assert "may take 10 KB, 0 B of it used; raise the quota" in result.err
    assert not (tmp_path / "s").exists()


def test_a_disk_that_fills_up_leaves_nothing_half_written(cli, pipeline, images, tmp_path, monkeypatch):
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tide.files.tensors.save_file", full)
    result = cli("collect", "--pipeline", pipeline, "--data", images, "--block", 3, "--out", tmp_path / "s")
    assert result.code == 2
    assert result.err == (
        f"tide: error: {tmp_path}/s/shard-00000.safetensors could not be written ([Errno 28] No space left on "
        "device); free some space or choose another folder\n"
    )
    assert not (tmp_path / "s").exists()


def test_json_of_a_run_names_every_option(store):
    arguments = json.loads((store / "run.json").read_text())["arguments"]
    assert {"pipeline", "data", "block", "timesteps", "no_pairs", "batch_size", "resume"} <= arguments.keys()


def test_json_of_a_run_says_what_it_holds(store, pipeline, images):
    found = contents(store)
    assert (found.kind, found.blocks, found.family, found.pipeline) == ("activations", [3, 6], "pixart", str(pipeline))
    assert found.data == {"name": str(images), "images": KEPT, "size": [64, 64], "hold_out": 0.1}
    assert found.weights == ActivationStore(store / "block-3").info["weights"]
    assert found.files == {"block-3": "activations", "block-6": "activations"}
    assert found.measured["rows"] == 2 * KEPT * 2 * 32

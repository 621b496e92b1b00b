"""`tide collect --resume`: what is checked before it resumes, what it refuses, and what stays behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tide.activations import ActivationStore, stores, to_disk
from tide.activations.batch import ActivationBatch
from tide.files import lock_folder

N = 6


def shards(path: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.glob("shard-*"))}


def all_rows(path: Path) -> ActivationBatch:
    found = ActivationStore(path)
    return ActivationBatch.cat([found.read(i) for i in range(len(found.shards))])


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(stores, "SMALLEST_SHARD", 1)


@pytest.fixture
def data(images, tmp_path) -> Path:
    """1.png .. 6.png; captions beside some."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(N):
        shutil.copy(images / f"0{i}.png", folder / f"{i + 1}.png")
    (folder / "3.txt").write_text("a red house")
    return folder


@pytest.fixture
def command(pipeline, data, tmp_path) -> list[object]:
    options = ["--hold-out", 0, "--block", 1, "--batch-size", 2, "--out", tmp_path / "s"]
    return ["collect", "--pipeline", pipeline, "--data", data, *options]


@pytest.fixture
def begun(cli, command, tmp_path) -> Path:
    """Four of six images: 6.png, 2.png, 1.png and 3.png."""
    assert cli(*command, "--images", 4).code == 0
    return tmp_path / "s"


# -- other data, other options ---------------------------------------------------------------------------------


def repaint(path: Path) -> None:
    image = Image.open(path).convert("RGB")
    image.putpixel((5, 5), (1, 2, 3))
    image.save(path)


CHANGES = {
    "removed": (lambda data: (data / "2.png").unlink(), "2.png is gone"),
    "renamed": (lambda data: (data / "2.png").rename(data / "22.png"), "2.png is gone"),
    "all but two removed": (lambda data: [(data / f"{i}.png").unlink() for i in (3, 4, 5, 6)], "6.png is gone"),
    "repainted": (lambda data: repaint(data / "2.png"), "2.png is another image"),
    "swapped": (
        lambda data: [shutil.copy(data / "2.png", data / "t"), shutil.copy(data / "3.png", data / "2.png")],
        "2.png is another image",
    ),
    "captioned": (lambda data: (data / "1.txt").write_text("a tree"), "the caption of 1.png is another one"),
    "captioned otherwise": (lambda data: (data / "3.txt").write_text("a"), "the caption of 3.png is another one"),
    "caption removed": (lambda data: (data / "3.txt").unlink(), "the caption of 3.png is another one"),
    "captions listed": (
        lambda data: (data / "metadata.jsonl").write_text('{"file_name": "2.png", "text": "a cone"}'),
        "the caption of 2.png is another one",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_images_or_captions_are_refused_with_what_changed(cli, command, begun, data, change):
    before = shards(begun)
    alter, what = CHANGES[change]
    alter(data)
    for options in ([], ["--images", 4]):  # with something left to collect, and with nothing
        if options and change == "all but two removed":
            continue  # fewer are asked for
        result = cli(*command, "--resume", *options)
        assert (result.code, result.err) == (
            2,
            f"tide: error: {begun} was collected from other data: {what}; "
            "restore the data, or collect into another folder\n",
        )
    assert shards(begun) == before


def names(path: Path) -> list[str]:
    """Of the images that a store was collected from, in its order."""
    found: list[str] = []
    for shard in ActivationStore(path).shards:
        text = bytes(load_file(path / shard["file"])["samples"].tolist()).decode()
        found += [name for name, *_ in json.loads(text)]
    return found


def test_images_after_those_collected_may_come_and_change(cli, command, begun, data):
    """Whatever they are called: what was collected comes first."""
    before = names(begun)
    assert before == ["6.png", "2.png", "1.png", "3.png"]
    repaint(data / "5.png")
    new = ["0.png", "11.png", "33.png", "7.png"]
    for name in new:
        shutil.copy(data / "1.png", data / name)
    assert cli(*command, "--resume").code == 0
    assert names(begun)[:4] == before
    assert sorted(names(begun)[4:]) == sorted([*new, "4.png", "5.png"])
    assert sorted(set(all_rows(begun).sample.tolist())) == list(range(10))


def sorted_as_by_an_earlier_version(cli, command, monkeypatch, *options: object) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("tide.images.samples.seeded", lambda names, seed: list(range(len(names))))
        assert cli(*command, *options).code == 0
    for file in Path(command[-1]).glob("samples-*.json"):
        file.unlink()  # an earlier version wrote none


def test_a_store_that_an_earlier_version_read_in_sorted_order_is_extended(cli, command, data, tmp_path, monkeypatch):
    sorted_as_by_an_earlier_version(cli, command, monkeypatch, "--images", 3)
    assert names(tmp_path / "s") == ["1.png", "2.png", "3.png"]
    assert cli(*command, "--resume").code == 0
    assert names(tmp_path / "s") == ["1.png", "2.png", "3.png", "6.png", "5.png", "4.png"]


@pytest.mark.parametrize("shard", range(2))
def test_a_damaged_shard_of_such_a_store_is_mended(cli, command, data, tmp_path, monkeypatch, shard):
    sorted_as_by_an_earlier_version(cli, command, monkeypatch, "--images", 4)
    before = shards(tmp_path / "s")
    (tmp_path / f"s/shard-{shard:05d}.safetensors").write_bytes(b"")
    assert cli(*command, "--images", 4, "--resume").code == 0
    assert shards(tmp_path / "s") == before


# -- what is held out ------------------------------------------------------------------------------------------


def test_a_store_keeps_the_share_that_it_was_collected_without(cli, command, data, tmp_path):
    default = [each for each in command if each not in ("--hold-out", 0)]
    first = cli(*default, "--images", 2)
    assert "1 of the 6 images of " in first.out
    assert "is held out" in first.out
    assert ActivationStore(tmp_path / "s").info["hold_out"] == 0.1
    assert json.loads((tmp_path / "s/run.json").read_text())["holds"]["data"]["hold_out"] == 0.1
    for share, said in ((0, "0.1, now 0"), (0.5, "0.1, now 0.5")):
        result = cli(*default, "--resume", "--hold-out", share)
        assert result.err == (
            f"tide: error: {tmp_path}/s was collected with a hold_out of {said}; use the same or another folder\n"
        )
    assert cli(*default, "--resume").code == 0
    assert len(names(tmp_path / "s")) == 5


@pytest.mark.parametrize("share", [1, -0.1, 1.5])
def test_a_share_that_leaves_nothing_is_refused_before_the_pipeline_is_loaded(cli, command, monkeypatch, share):
    monkeypatch.setattr("tide.cli.common.load_adapter", lambda *_a, **_k: pytest.fail("the pipeline was loaded"))
    for start in (command, ["train", *command[1:5], "--out", command[-1]]):
        result = cli(*start, "--hold-out", share)
        assert result.code == 2
        assert f"hold_out {float(share)} is not in [0, 1)" in result.err


def test_a_store_that_holds_nothing_out_goes_on_so(cli, command, begun, data):
    """It may be of an earlier version, which knew no share."""
    default = [each for each in command if each not in ("--hold-out", 0)]
    assert "hold_out of 0, now 0.2" in cli(*default, "--resume", "--hold-out", 0.2).err
    assert cli(*default, "--resume").code == 0
    assert len(names(begun)) == N
    assert "hold_out" not in ActivationStore(begun).info


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--batch-size", 4], "batch_size 2, now 4"),
        (["--seed", 3], "seed 0, now 3"),
        (["--dtype", "bf16"], 'dtype "float32", now "bfloat16"'),
        (["--timesteps", 10], "timesteps 20, now 10"),
        (["--token-fraction", "1/8"], "token_fraction 0.0625, now 0.125"),
        (["--no-pairs"], "paired true, now false"),
        (["--tensor", "attention"], 'tensor "output", now "attention"'),
        (["--block", 2], "block 1, now 2"),
        (["--sampling"], 'mode "noised", now "sampling"'),
        (["--size", 72], "size[0] 64, now 72"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_other_options_are_refused(cli, command, begun, options, what):
    result = cli(*command, "--resume", *options)
    assert result.code == 2
    assert result.err == (
        f"tide: error: {begun} was collected with other options ({what}); use the same options or another folder\n"
    )


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "scheduler"])
def test_another_pipeline_of_the_same_name_is_refused(cli, command, begun, pipeline, tmp_path, part):
    from diffusers import DiffusionPipeline

    changed = DiffusionPipeline.from_pretrained(pipeline)
    if part == "scheduler":
        changed.scheduler.register_to_config(beta_end=0.5)
    else:
        with torch.no_grad():
            next(getattr(changed, part).parameters()).mul_(1.001)
    kept = shutil.copytree(pipeline, tmp_path / "kept")
    try:
        changed.save_pretrained(pipeline)
        result = cli(*command, "--resume")
    finally:
        shutil.rmtree(pipeline)
        shutil.copytree(kept, pipeline)
    assert result.code == 2
    assert f"{begun} was collected with other options (weights.{part} " in result.err
    assert cli(*command, "--resume").code == 0


def test_another_file_of_prompts_is_refused(cli, pipeline, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red house\na blue tree\n")
    command = ["collect", "--pipeline", pipeline, "--sampling", "--prompts", prompts, "--timesteps", 2]
    command += ["--block", 1, "--batch-size", 1, "--out", tmp_path / "s"]
    assert cli(*command).code == 0
    prompts.write_text("a red house\na blue tree\na cone\n")
    assert cli(*command, "--resume").code == 0
    assert ActivationStore(tmp_path / "s").manifest["next_sample"] == 3
    for text, what in (
        ("a red house\na cone\n", "the caption of prompt 1 is another one"),
        ("a red house\na blue tree\n", "prompt 2 is gone"),
    ):
        prompts.write_text(text)
        assert what in cli(*command, "--resume").err
    # Fewer may be asked for.
    prompts.write_text("a red house\na blue tree\na cone\n")
    assert cli(*command, "--resume", "--images", 2).code == 0


class Rows(list):
    """Of a data set that does not say what its columns hold."""

    features = None

    def shuffle(self, seed, buffer_size):
        return self


def test_another_part_of_a_named_data_set_is_refused(cli, pipeline, tmp_path, monkeypatch):
    rows = [{"image": Image.new("RGB", (64, 64), (i, 0, 0)), "text": f"{i}", "other": "x"} for i in range(4)]
    fake = ModuleType("datasets")
    fake.load_dataset = lambda name, split, streaming: Rows(rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("tide.images.opening.find_spec", lambda name: object())
    command = ["collect", "--pipeline", pipeline, "--data", "owner/pictures", "--block", 1, "--out", tmp_path / "s"]
    command += ["--hold-out", 0, "--batch-size", 2, "--images"]
    assert cli(*command, 2).code == 0
    assert 'split "train", now "test"' in cli(*command, 4, "--resume", "--split", "test").err
    assert 'caption_column "text", now "other"' in cli(*command, 4, "--resume", "--caption-column", "other").err
    rows[1]["image"] = Image.new("RGB", (64, 64), "white")
    assert "row 1 is another image" in cli(*command, 4, "--resume").err
    rows[1]["image"] = Image.new("RGB", (64, 64), (1, 0, 0))
    assert cli(*command, 4, "--resume").code == 0


# -- equal bits ------------------------------------------------------------------------------------------------


def test_equal_settings_give_equal_bits(cli, command, begun, tmp_path):
    again = [*command[:-1], tmp_path / "again"]
    assert cli(*again, "--images", 4).code == 0
    assert shards(tmp_path / "again") == shards(begun)
    assert ActivationStore(begun).info["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_an_extended_store_has_the_bits_of_one_collected_at_once(cli, command, tmp_path, n):
    """With passes of 2, the last pass of 1, 3 and 5 images is not full: it is made again."""
    assert cli(*command, "--images", n).code == 0
    assert cli(*command, "--resume").code == 0
    assert cli(*command[:-1], tmp_path / "once").code == 0
    one, other = all_rows(tmp_path / "s"), all_rows(tmp_path / "once")
    for name in ("x", "sample", "token", "timestep", "group"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_store_that_could_not_be_extended_keeps_what_it_had(cli, command, data, tmp_path, monkeypatch):
    assert cli(*command, "--images", 3).code == 0
    before, manifest = shards(tmp_path / "s"), (tmp_path / "s/manifest.json").read_text()
    (data / "4.png").write_bytes(b"no image")
    assert cli(*command, "--resume").code == 2
    assert shards(tmp_path / "s") == before
    assert (tmp_path / "s/manifest.json").read_text() == manifest
    assert cli(*command, "--resume", "--skip-unreadable").code == 0
    assert len(list((tmp_path / "s").glob("shard-*"))) == len(ActivationStore(tmp_path / "s").shards)
    ActivationStore(tmp_path / "s").verify()


def test_damage_and_extension_at_once(cli, command, tmp_path):
    """With passes of 2: the last shard is not full, and each in turn is damaged."""
    assert cli(*command[:-1], tmp_path / "once").code == 0
    for number in range(3):
        path = tmp_path / str(number)
        assert cli(*command[:-1], path, "--images", 5).code == 0
        (path / f"shard-{number:05d}.safetensors").write_bytes(b"")
        assert cli(*command[:-1], path, "--resume").code == 0
        assert torch.equal(all_rows(path).x, all_rows(tmp_path / "once").x)
        assert ActivationStore(path).complete
        assert len(list(path.glob("samples-*"))) == len(ActivationStore(path).shards)


@pytest.mark.parametrize("options", [(), ("--images", N)], ids=["all", "as many as before"])
@pytest.mark.parametrize("share", [0, 0.3])
@pytest.mark.parametrize("shard", [0, 1])
def test_a_damaged_shard_is_collected_again_after_images_were_added(
    cli, command, data, tmp_path, options, share, shard
):
    """Whatever the added ones are called, the shard holds what it held."""
    command = [share if each == 0 else each for each in command]
    assert cli(*command).code == 0
    before, read = shards(tmp_path / "s"), names(tmp_path / "s")
    for i in range(20):
        shutil.copy(data / "1.png", data / f"new {i}.png")
    (tmp_path / f"s/shard-{shard:05d}.safetensors").write_bytes(b"")
    assert cli(*command, "--resume", *options).code == 0
    assert names(tmp_path / "s")[: len(read)] == read
    whole = [name for name in before if name != max(before)]  # the last one may have been extended
    assert {name: shards(tmp_path / "s").get(name) for name in whole} == {name: before[name] for name in whole}


def test_damaged_shards_are_collected_again_to_the_same_bits(cli, command, begun):
    assert cli(*command, "--resume").code == 0
    before = shards(begun)
    manifest = (begun / "manifest.json").read_text()
    assert len(before) == 3
    (begun / "shard-00000.safetensors").write_bytes(b"")
    content = bytearray((begun / "shard-00001.safetensors").read_bytes())
    content[-3] ^= 4
    (begun / "shard-00001.safetensors").write_bytes(content)
    result = cli(*command, "--resume")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"note: {begun}/shard-00000.safetensors is not a readable safetensors file (truncated or foreign: Error while "
        "deserializing header: header too small): its images are collected again",
        f"note: {begun}/shard-00001.safetensors is not the shard that the manifest lists (another SHA-256): its images "
        "are collected again",
    ]
    assert shards(begun) == before
    assert (begun / "manifest.json").read_text() == manifest


def test_a_damaged_shard_is_not_made_of_fewer_images(cli, command, begun, data):
    (begun / "shard-00001.safetensors").unlink()
    assert cli(*command, "--resume", "--images", 3).code == 2
    for i in (4, 5, 6):
        (data / f"{i}.png").unlink()
    assert f"{begun} was collected from other data: 6.png is gone" in cli(*command, "--resume").err


def test_a_store_of_an_older_version_is_resumed(cli, command, begun, tmp_path):
    manifest = json.loads((begun / "manifest.json").read_text())
    for shard in manifest["shards"]:
        file = begun / shard["file"]
        tensors = load_file(file)
        del tensors["samples"]
        save_file(tensors, file, metadata={"format": "tide-activations/1"})
        shard["bytes"] = file.stat().st_size
        for name in ("sha256", "first_sample", "samples", "data"):
            del shard[name]
    for name in ("weights", "batch_size", "device", "threads"):
        del manifest["info"][name]
    (begun / "manifest.json").write_text(json.dumps(manifest))
    result = cli(*command, "--resume")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"note: {begun} does not record batch_size, device, threads, weights: taken to be the same",
        f"note: {begun} does not record its images and captions: taken to be the same",
    ]
    assert cli(*command[:-1], tmp_path / "once").code == 0
    assert torch.equal(all_rows(begun).x, all_rows(tmp_path / "once").x)
    assert ActivationStore(begun).info == ActivationStore(tmp_path / "once").info
    assert [shard["first_sample"] for shard in ActivationStore(begun).shards] == [0, 2, 4]
    (begun / "shard-00001.safetensors").unlink()  # and is mended from now on
    assert cli(*command, "--resume").code == 0
    assert torch.equal(all_rows(begun).x, all_rows(tmp_path / "once").x)


@pytest.mark.parametrize(("before", "said"), [(99, "99 threads"), (1, "1 thread")])
def test_another_number_of_threads_is_said(cli, command, begun, monkeypatch, before, said):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    manifest = json.loads((begun / "manifest.json").read_text())
    manifest["info"]["threads"] = before
    (begun / "manifest.json").write_text(json.dumps(manifest))
    result = cli(*command, "--resume")
    assert result.code == 0
    assert result.err == (f"note: {begun} was collected with {said}, not 3: roundings can differ\n")


# -- what stays behind, and where ------------------------------------------------------------------------------


def test_only_empty_folders_of_this_run_are_removed(cli, command, tmp_path, monkeypatch):
    """Another command finished its result beside it meanwhile."""
    out = tmp_path / "runs" / "acts"

    def interrupted(*_args, **_kwargs):
        (tmp_path / "runs" / "tide").mkdir()
        (tmp_path / "runs" / "tide" / "model.safetensors").write_text("finished")
        raise KeyboardInterrupt

    monkeypatch.setattr(to_disk, "collect", interrupted)
    assert cli(*command[:-1], out).code == 130
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["tide", "model.safetensors"]


@pytest.mark.parametrize("blocks", [[1], [1, 2]], ids=str)
def test_nothing_stays_of_a_run_without_a_shard(cli, command, data, tmp_path, blocks):
    (data / "2.png").write_bytes(b"no image")
    assert cli(*command[:-1], tmp_path / "runs" / "acts", "--block", *blocks).code == 2
    assert not (tmp_path / "runs").exists()


def test_a_place_that_cannot_be_written_is_found_before_the_pipeline_is_loaded(cli, command, tmp_path, monkeypatch):
    monkeypatch.setattr("tide.cli.common.load_adapter", lambda *_a, **_k: pytest.fail("the pipeline was loaded"))
    (tmp_path / "file").write_text("in the way")
    result = cli(*command[:-1], tmp_path / "file" / "acts")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{tmp_path}/file/acts cannot be written (" in result.err


def test_run_json_keeps_every_run(cli, command, begun):
    assert cli(*command, "--resume").code == 0
    assert cli(*command, "--resume", "--quota", "1GB").code == 0
    run = json.loads((begun / "run.json").read_text())
    assert run["arguments"]["quota"] == 10**9
    assert [earlier["arguments"]["images"] for earlier in run["earlier"]] == [4, None]
    assert "earlier" not in run["earlier"][1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not valid JSON"),
        ("[]", "it is [] and must be an object"),
        ('{"earlier": 3}', "earlier is 3 and must be"),
    ],
)
def test_a_damaged_run_json_is_found_before_the_work(cli, command, begun, text, said):
    before = shards(begun)
    (begun / "run.json").write_text(text)
    result = cli(*command, "--resume")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{begun}/run.json" in result.err
    assert said in result.err
    assert shards(begun) == before
    (begun / "run.json").unlink()
    assert cli(*command, "--resume").code == 0


@pytest.mark.parametrize("umask", [0o022, 0o077], ids="{:03o}".format)
def test_files_have_the_mode_that_the_umask_asks_for(cli, command, tmp_path, umask):
    former = os.umask(umask)
    try:
        assert cli(*command, "--images", 2).code == 0
    finally:
        os.umask(former)
    assert {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "s").iterdir()} == dict.fromkeys(
        ("manifest.json", "run.json", "samples-00000.json", "shard-00000.safetensors"), 0o666 & ~umask
    )


def test_a_store_that_another_process_writes_is_refused(cli, command, begun, tmp_path):
    before = shards(begun)
    with lock_folder(begun):
        result = cli(*command, "--resume")
    assert result.err == (
        f"tide: error: {begun} is being written by this process already; wait for it or choose another folder\n"
    )
    assert shards(begun) == before


def test_of_several_stores_all_are_locked_before_one_is_written(cli, command, tmp_path):
    out = tmp_path / "several"
    with lock_folder(out / "block-2"):
        result = cli(*command[:-1], out, "--block", 1, 2)
        assert "several/block-2 is being written by this process already" in result.err
        assert sorted(path.name for path in out.iterdir()) == ["block-2"]
    with lock_folder(out):
        assert "several is being written" in cli(*command[:-1], out, "--block", 1, 2).err
    assert cli(*command[:-1], out, "--block", 1, 2).code == 0


def test_the_disk_is_counted_for_all_blocks_together(cli, command, tmp_path, monkeypatch):
    """Each store is 6 images x 2 x 4 tokens x (192 x 4 + 16) bytes and a bit: 37.7 KB."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 0, 50_000))
    result = cli(*command[:-1], tmp_path / "b", "--block", 1, 2)
    assert result.code == 2
    assert "75.4 KB of activations are expected and the disk of" in result.err
    assert not (tmp_path / "b").exists()
    assert cli(*command[:-1], tmp_path / "b").code == 0


# -- kills -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_kills_at_random_moments_lose_nothing(tmp_path):
    """The bundled pipeline in a process of its own, killed again and again until a run comes through."""
    options = ["--pipeline", "scenes", "--data", "scenes", "--images", "96", "--batch-size", "4", "--block", "3", "5"]
    command = [sys.executable, "-m", "tide.cli", "collect", *options, "--token-fraction", "1", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "whole"], check=True, env=environment, capture_output=True)
    chance = random.Random(0)
    path = tmp_path / "killed"
    for _ in range(6):
        with subprocess.Popen(
            [*command, path, "--resume"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as run:
            while not (path / "block-5" / ".lock").exists() and run.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 2))
            run.send_signal(signal.SIGKILL)
        for store in path.glob("block-*"):
            if (store / "manifest.json").exists():
                ActivationStore(store).verify()
    subprocess.run([*command, path, "--resume"], check=True, env=environment, capture_output=True)
    for block in ("block-3", "block-5"):
        assert shards(path / block) == shards(tmp_path / "whole" / block)
        assert not list((path / block).glob(".*"))

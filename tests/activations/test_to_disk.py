"""One call from a pipeline and images, or prompts, to stores on disk."""

from __future__ import annotations

import json

import pytest
import torch

from tide.activations import ActivationBatch, ActivationStore, collect, collect_sampling
from tide.activations.options import CollectOptions
from tide.activations.source import Prompts, Source
from tide.activations.to_disk import blocks_in_words, collect_to_disk, expected_bytes
from tide.adapters.sizes import caption_length, sampling_arguments
from tide.data import open_source
from tide.errors import TideError
from tide.runs import contents, read_run

N = 4
OPTIONS = CollectOptions(token_fraction=1 / 4, batch_size=2)
PROMPTS = Prompts("two", (64, 64), ("a red house", "a blue cone"))


@pytest.fixture
def source(adapter) -> Source:
    return open_source("scenes", adapter, images=N, batch_size=2)


def rows(path) -> ActivationBatch:
    store = ActivationStore(path)
    return ActivationBatch.cat([store.read(i) for i in range(len(store.shards))])


def test_a_store_holds_what_collect_yields(adapter, source, tmp_path):
    said: list[str] = []
    found = collect_to_disk(adapter, source, tmp_path / "s", blocks=(3,), options=OPTIONS, seed=5, say=said.append)
    assert found == ({3: tmp_path / "s"}, N * 2 * 16, N, (tmp_path / "s/shard-00000.safetensors").stat().st_size)
    assert said == [f"{N} images of scenes, block 3: about 100 KB on disk"]
    length = caption_length(adapter)
    passes = collect(adapter, source, [3], token_fraction=1 / 4, batch_size=2, seed=5, max_sequence_length=length)
    whole, stored = ActivationBatch.cat([each[3] for each in passes]), rows(tmp_path / "s")
    for name in ("x", "timestep", "group", "sample", "token"):
        assert torch.equal(getattr(stored, name), getattr(whole, name)), name


def test_what_was_collected_is_written_down(adapter, source, tmp_path):
    found = collect_to_disk(adapter, source, str(tmp_path / "s"), options=OPTIONS, say=lambda text: None)
    info = ActivationStore(tmp_path / "s").info
    assert (info["block"], info["family"], info["mode"], info["data"]) == (6, "pixart", "noised", "scenes")
    assert (info["size"], info["token_fraction"], info["paired"], info["batch_size"]) == ([64, 64], 0.25, True, 2)
    holds = contents(tmp_path / "s")
    assert holds is not None
    assert (holds.kind, holds.blocks, holds.family, holds.weights) == ("activations", [6], "pixart", info["weights"])
    assert holds.measured == {"rows": found.rows, "images": N, "bytes": found.bytes}
    run = read_run(tmp_path / "s")
    assert run is not None
    assert (run["command"], "earlier" in run) == (None, False)


def test_several_blocks_have_a_store_each(adapter, source, tmp_path):
    found = collect_to_disk(adapter, source, tmp_path / "s", blocks=(1, "penultimate", 6), options=OPTIONS)
    assert found.folders == {1: tmp_path / "s/block-1", 6: tmp_path / "s/block-6"}
    assert found.rows == 2 * N * 2 * 16
    whole = contents(tmp_path / "s")
    assert whole is not None
    assert (whole.blocks, whole.files) == ([1, 6], {"block-1": "activations", "block-6": "activations"})
    assert whole.measured == {"rows": found.rows, "images": N, "bytes": found.bytes}
    for block, folder in found.folders.items():  # each store is what a training is given
        holds = contents(folder)
        assert holds is not None
        assert (holds.kind, holds.blocks, holds.files) == ("activations", [block], {"manifest.json": "index"})
        assert holds.measured["rows"] == N * 2 * 16
    collect_to_disk(adapter, source, tmp_path / "one", blocks=(6,), options=OPTIONS)
    assert torch.equal(rows(tmp_path / "s/block-6").x, rows(tmp_path / "one").x)


@pytest.mark.parametrize("paired", [True, False])
def test_sampling_runs(adapter, tmp_path, paired):
    options = CollectOptions(n_timesteps=3, token_fraction=1 / 4, paired=paired, batch_size=2)
    found = collect_to_disk(adapter, PROMPTS, tmp_path / "s", blocks=(3,), options=options, guidance_scale=2.0)
    assert found.rows == 2 * 16 * (4 if paired else 3)
    assert found.bytes == pytest.approx(expected_bytes(adapter, PROMPTS, options), rel=0.05)
    info = ActivationStore(tmp_path / "s").info
    assert (info["mode"], info["guidance"]) == ("sampling", 2.0)
    given = {"n_steps": 3, "guidance_scale": 2.0, "token_fraction": 1 / 4, "paired": paired, "batch_size": 2}
    (whole,) = collect_sampling(adapter, PROMPTS.texts, [3], **given, **sampling_arguments(adapter, PROMPTS.size))
    assert torch.equal(rows(tmp_path / "s").x, whole[3].x)


def test_one_prompt_is_one_image(adapter, tmp_path):
    said: list[str] = []
    one = Prompts("one", (64, 64), ("a red house",))
    options = CollectOptions(n_timesteps=2, token_fraction=1 / 4, batch_size=2)
    collect_to_disk(adapter, one, tmp_path / "s", options=options, say=said.append)
    assert said[0].startswith("1 image, block ")


def test_captions_of_images_are_prompts(adapter, source):
    prompts = source.prompts((64, 128))
    list(source)
    assert (prompts.name, prompts.size, prompts.n_images, prompts.limited) == ("scenes", (64, 128), N, True)
    assert [sample.caption for sample in prompts.samples()] == [sample.caption for sample in source.samples()]


def test_a_collection_is_extended(adapter, source, tmp_path):
    fewer = open_source("scenes", adapter, images=2, batch_size=2)
    collect_to_disk(adapter, fewer, tmp_path / "s", options=OPTIONS)
    with pytest.raises(TideError, match="already holds activations; resume"):
        collect_to_disk(adapter, source, tmp_path / "s", options=OPTIONS)
    other = CollectOptions(token_fraction=1 / 2, batch_size=2)
    with pytest.raises(TideError, match=r"with other options \(token_fraction 0\.25, now 0\.5\); use the same"):
        collect_to_disk(adapter, source, tmp_path / "s", options=other, resume=True)
    found = collect_to_disk(adapter, source, tmp_path / "s", options=OPTIONS, resume=True)
    assert found.images == N
    collect_to_disk(adapter, source, tmp_path / "once", options=OPTIONS)
    assert torch.equal(rows(tmp_path / "s").x, rows(tmp_path / "once").x)
    run = json.loads((tmp_path / "s/run.json").read_text())
    assert [each["holds"]["data"]["images"] for each in (run, *run["earlier"])] == [N, 2]


def test_what_cannot_be_collected_leaves_no_folder(adapter, source, tmp_path):
    with pytest.raises(TideError, match="block 8 does not exist"):
        collect_to_disk(adapter, source, tmp_path / "s", blocks=(3, 8))
    with pytest.raises(TideError, match="may take 1 KB"):
        collect_to_disk(adapter, source, tmp_path / "s", quota=1000)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tensor": "logits"}, "tensor 'logits' is unknown; use one of output, attention, feed_forward"),
        ({"token_fraction": 0.0}, "token_fraction 0.0 is not in (0, 1]; 1/16 is usual"),
        ({"batch_size": 0}, "batch_size 0 is too small; give at least 1"),
        ({"batch_size": 2.5}, "batch_size 2.5 is not a whole number; give at least 1"),
        ({"n_timesteps": 0}, "n_timesteps 0 is too small; give at least 1"),
    ],
)
def test_options_that_are_not_valid(values, message):
    with pytest.raises(TideError) as error:
        CollectOptions(**values)
    assert str(error.value) == message


def test_blocks_in_words():
    assert (blocks_in_words([3]), blocks_in_words([3, 6])) == ("block 3", "blocks 3, 6")


@pytest.mark.parametrize("data", ["photos/", [1], None], ids=str)
def test_what_is_no_source_is_refused_with_the_remedy(adapter, tmp_path, data):
    with pytest.raises(TideError, match=r"data of type \w+ are given; open images with tide.open_source"):
        collect_to_disk(adapter, data, tmp_path / "s")
    assert not (tmp_path / "s").exists()

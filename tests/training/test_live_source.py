"""Live streams: the same bits from any step, alone or for several blocks, with passes beside the steps or without."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch

from tests.helpers.trainings import digests
from tide.activations import ActivationBatch, collect
from tide.activations.options import CollectOptions
from tide.activations.source import Source
from tide.adapters import tap
from tide.data import open_source
from tide.errors import TideError
from tide.fingerprint import pipeline_fingerprints
from tide.images.trained import TrainedOn
from tide.training import TrainConfig, live, live_blocks, live_source, train

N = 10
OPTIONS = CollectOptions(token_fraction=1 / 4)
CONFIG = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=4)
PLAIN = replace(CONFIG, modulation=False)


@pytest.fixture(scope="module")
def source(adapter) -> Source:
    return open_source("scenes", adapter, images=N)


def test_live(adapter, source):
    job = live(adapter, source, CONFIG, block=3, options=OPTIONS)
    assert job.model.trained_on == TrainedOn(("scenes",), digests(source))
    batch = next(job.batches(1))
    assert (len(batch), batch.paired) == (64, True)
    cached = live(adapter, source, CONFIG, block=3, options=OPTIONS, cache=True)
    assert torch.equal(next(cached.batches(1)).x, batch.x)
    assert cached.described == job.described
    assert job.described["pipeline"] == job.weights == pipeline_fingerprints(adapter.pipe)
    assert (job.described["block"], job.described["token_fraction"], job.described["images"]) == (3, 0.25, N)
    assert job.described["hold_out"] == 0  # of a data set that is streamed, the fingerprint does not tell it
    assert job.data == {"name": "scenes", "images": N, "size": [64, 64], "fingerprint": source.fingerprint()}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "options", [OPTIONS, CollectOptions(token_fraction=1 / 4, paired=False, batch_size=3)], ids=str
)
def test_a_live_stream_gives_the_same_bits_from_any_step(adapter, options, exact):
    """Ten images of 32 rows, or 16 without pairs, in windows of at most 100 rows."""
    images = open_source("scenes", adapter, images=N)
    known = Source(images.name, images.size, N if exact else N + 5, images.batches, exact=exact, hold_out=0.2)
    trained_on = live(adapter, known, PLAIN, block=2, options=options, buffer_rows=100).model.trained_on
    assert trained_on == TrainedOn(("scenes",), digests(images), 0.2)

    def batches(step: int, seed: int = 1) -> Iterator[ActivationBatch]:
        config = replace(PLAIN, batch_tokens=50, seed=seed)
        return live(adapter, known, config, block=2, options=options, buffer_rows=100).batches(step)

    whole = list(islice(batches(0), 9))
    for step in (1, 3, 6):
        for one, other in zip(islice(batches(step), 3), whole[step:], strict=False):
            assert len(one) == 50
            assert one.paired is options.paired
            assert torch.equal(one.x, other.x)
            assert torch.equal(one.sample, other.sample)
    assert len(torch.cat([batch.sample for batch in whole]).unique()) == N
    assert not torch.equal(next(batches(0, seed=2)).x, whole[0].x)


def test_several_blocks_get_what_each_would_get_alone(adapter, source):
    jobs = live_blocks(adapter, source, CONFIG, blocks=[3, "penultimate", 3], options=OPTIONS, buffer_rows=100)
    assert list(jobs.of) == [3, 6]
    for block, job in jobs.of.items():
        alone = live(adapter, source, CONFIG, block=block, options=OPTIONS, buffer_rows=100)
        assert job.described == alone.described
        assert (job.data, job.weights) == (alone.data, alone.weights)
        assert job.model.config == alone.model.config
        for together, own, of_job in zip(jobs.batches(1), islice(alone.batches(1), 3), job.batches(1), strict=False):
            assert torch.equal(together[block].x, own.x)
            assert torch.equal(of_job.x, own.x)
            assert torch.equal(together[block].timestep, own.timestep)


def weights_after(adapter, source, out, **more) -> dict[str, torch.Tensor]:
    """Of a training of 7 steps, in windows of 3."""
    config = replace(CONFIG, steps=7, checkpoint_every=4)
    learner = train(live(adapter, source, config, block=3, options=OPTIONS, buffer_rows=200), out, **more)
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def test_passes_beside_the_steps_change_no_bit(adapter, source, tmp_path, monkeypatch):
    """Neither from the first step nor in a training that resumes in the middle of a window."""
    trained = []
    for beside in (False, True):
        monkeypatch.setattr(live_source, "overlaps", lambda device, beside=beside: beside)
        trained.append(weights_after(adapter, source, tmp_path / str(beside)))
    job = live(adapter, source, replace(CONFIG, steps=7, checkpoint_every=4), block=3, options=OPTIONS, buffer_rows=200)
    with pytest.raises(TideError, match="the activations ended after 4 of 7 steps"):
        train(replace(job, batches=lambda step: islice(job.batches(step), 4)), tmp_path / "resumed")
    trained.append(weights_after(adapter, source, tmp_path / "resumed", resume=True))
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name]), name
        assert torch.equal(value, trained[2][name]), name
    assert not [each for each in threading.enumerate() if each.name == "prefetch"]


def test_what_else_runs_the_pipeline_sees_no_pass_and_changes_none(adapter, source, monkeypatch):
    """Between two batches: a tap that replaces tokens, a collection, another live stream."""
    monkeypatch.setattr(live_source, "overlaps", lambda device: True)
    whole = list(islice(live(adapter, source, CONFIG, block=3, options=OPTIONS, buffer_rows=100).batches(0), 8))
    stream = live(adapter, source, CONFIG, block=3, options=OPTIONS, buffer_rows=100).batches(0)
    got, seen = [next(stream)], []
    with tap(adapter, {3: lambda x, call: seen.append(x) or 0 * x}):
        adapter.denoise(torch.zeros(1, adapter.latent_channels, 16, 16), 500.0, adapter.encode_prompts(["near"]))
    got.append(next(stream))
    other = live(adapter, source, CONFIG, block=2, options=OPTIONS, buffer_rows=100).batches(0)
    for _ in range(6):
        next(other)
        next(iter(collect(adapter, source, [3], OPTIONS)))
        got.append(next(stream))
    assert len(seen) == 1
    for one, expected in zip(got, whole, strict=True):
        assert torch.equal(one.x, expected.x)


def test_an_error_of_a_pass_ends_the_training_in_one_line(adapter, source, tmp_path, monkeypatch):
    def failing(*arguments, **options):
        for number, batches in enumerate(collect(*arguments, **options)):
            if number:
                batches[3].x[0] = float("nan")
            batches[3].check_finite("block 3")
            yield batches

    monkeypatch.setattr(live_source, "overlaps", lambda device: True)
    monkeypatch.setattr(live_source, "collect", failing)
    job = live(adapter, source, CONFIG, block=3, options=replace(OPTIONS, batch_size=4), buffer_rows=128)
    with pytest.raises(TideError, match=r"^activations of block 3 hold NaN at timestep"):
        train(job, tmp_path / "out")
    assert not [each for each in threading.enumerate() if each.name == "prefetch"]

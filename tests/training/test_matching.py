"""The threshold that is set after training: k latents a token are active, on other tokens as well."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from itertools import count, islice, repeat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers.trainings import MODULATION, D, assert_same, batch, interrupted, state, stream, trainer
from tide.activations import ActivationBatch
from tide.errors import TideError, TideWarning
from tide.sae import TIDE, TIDEConfig
from tide.studies.bench import Bench, DataSizes
from tide.training import LossConfig, ProgressiveK, TrainConfig, Trainer
from tide.training.matching import MATCHED_ROWS, L0Match, following
from tide.training.state import STATE

#: What has a threshold to set.
MATCHED = {
    "BatchTopK": {"activation": "batch_topk"},
    "BatchTopK that knows the timestep": {"activation": "batch_topk", "timestep_thresholds": True},
    "JumpReLU": {"activation": "jumprelu"},
    "JumpReLU that knows the timestep": {"activation": "jumprelu", "timestep_thresholds": True},
    "ReLU": {"activation": "relu", "match_l0": True},
    "Gated": {"activation": "gated", "match_l0": True},
}
N = 256


def model(n_latents: int = 64, k: int = 3, *, seed: int = 3, **options) -> TIDE:
    return TIDE(TIDEConfig(D, n_latents, k, modulation=MODULATION, family="pixart", block=6, **options), seed=seed)


def moved(k: int = 8, **options) -> TIDE:
    """A model whose pre-activations are like nobody's, calibrated on a batch."""
    sae = model(N, k, **options)
    sae.calibrate(batch(0).x, batch(0).position)
    sae.loss(batch(0).x, batch(0).position)  # BatchTopK learns its threshold
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae.eval()


def match_l0(sae: TIDE, batches: Iterable[ActivationBatch]) -> None:
    match = L0Match(sae)
    for each in batches:
        match.add(each)
    match.finish()


def l0(sae: TIDE, batches: list[ActivationBatch]) -> float:
    with torch.no_grad():
        codes = [sae.encode(each.x, each.position) for each in batches]
    return sum(int((each.values != 0).sum()) for each in codes) / sum(map(len, batches))


@pytest.mark.parametrize("options", MATCHED.values(), ids=MATCHED)
@pytest.mark.parametrize("k", [1, 8, 30])
def test_k_latents_are_active_on_the_tokens_it_is_set_on(options, k):
    """To the width of a bin, 2^-13 of the threshold, within which fewer than one in a thousand of these lie."""
    sae, batches = moved(k, **options), [batch(seed, rows=1000) for seed in range(4)]
    assert l0(sae, batches) != pytest.approx(k, rel=1e-2)
    match_l0(sae, batches)
    assert l0(sae, batches) == pytest.approx(k, rel=1e-3)


def test_jumprelu_keeps_the_proportions_of_its_thresholds():
    sae = moved(activation="jumprelu")
    before = sae.activation.threshold.detach().clone()
    match_l0(sae, [batch(0)])
    ratio = sae.activation.threshold.detach() / before
    torch.testing.assert_close(ratio, ratio[:1].expand(N))
    assert float(ratio[0]) != pytest.approx(1, rel=1e-2)


def test_fewer_positive_pre_activations_than_k():
    sae = moved(200, activation="relu", match_l0=True)
    positive = l0(sae, [batch(0)])
    assert positive < 200
    with pytest.warns(TideWarning, match=rf"^only {positive:.1f} latents a token have a positive .* train with a smal"):
        match_l0(sae, [batch(0)])
    assert l0(sae, [batch(0)]) == pytest.approx(positive, rel=1e-3)


@pytest.mark.parametrize("batches", [[], [batch(0, rows=0)]], ids=["no batch", "no rows"])
def test_without_rows_nothing_changes(batches):
    sae = moved(activation="jumprelu")
    before = state(sae)
    match_l0(sae, batches)
    assert_same(state(sae), before)


# -- which rows ---------------------------------------------------------------------------------------------------


def test_the_rows_are_those_that_would_come_next():
    source = stream()
    last = list(islice(source, 5))[-1]
    found = list(following(source, last, steps=5))
    assert [float(each.x[0, 0]) for each in found] == [float(batch(5 + i).x[0, 0]) for i in range(5)]
    enough = list(following(stream(), last, steps=10**6))
    assert sum(map(len, enough)) == MATCHED_ROWS


def test_activations_that_end_with_the_training(tmp_path):
    job = trainer(tmp_path, model(activation="batch_topk"), steps=4, activation="batch_topk")
    with pytest.warns(TideWarning, match=r"the threshold is set on the 64 rows of its last step: L0 may be off"):
        job.fit(islice(stream(), 4))
    assert l0(job.model, [batch(3)]) == pytest.approx(job.model.config.k, rel=0.01)


def test_what_has_no_threshold_reads_no_further(tmp_path):
    for options in ({}, {"activation": "relu"}, {"activation": "gated"}):
        job = trainer(tmp_path / str(options), model(**options), steps=4, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("error", TideWarning)
            job.fit(islice(stream(), 4))


# -- held-out tokens ------------------------------------------------------------------------------------------------


def dense_batch(seed: int) -> ActivationBatch:
    """Rows of many directions, of which more are active at the earlier timestep."""
    given = batch(seed, rows=512)
    generator = torch.Generator().manual_seed(10**6 + seed)
    spread = torch.tensor([2.0, 0.5])[given.group.long()]
    return replace(given, x=given.x + spread[:, None] * torch.randn(512, D, generator=generator))


@pytest.mark.parametrize("options", MATCHED.values(), ids=MATCHED)
@pytest.mark.parametrize("k", [4, 8])
def test_held_out_l0_is_within_3_percent_of_k(tmp_path, options, k):
    job = trainer(
        tmp_path, model(64, k, **options), n_latents=64, k=k, steps=60, batch_tokens=512, checkpoint_every=60,
        loss=LossConfig(sparsity=0.1, temporal=0.0), **options,
    )  # fmt: skip
    job.fit(dense_batch(seed) for seed in count())
    held_out = [dense_batch(10**5 + seed) for seed in range(20)]
    assert l0(job.model, held_out) == pytest.approx(k, rel=0.03)


# -- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MATCHED.values(), ids=MATCHED)
def test_resume_is_bit_equal_to_an_uninterrupted_run(tmp_path, options):
    def run(out: str, batches, sae: TIDE) -> Trainer:
        shape = ProgressiveK(shape="off")
        job = trainer(tmp_path / out, sae, steps=30, checkpoint_every=10, n_latents=64, progressive_k=shape, **options)
        job.fit(batches, resume=True)
        return job

    whole = run("whole", stream, model(**options))
    with pytest.raises(TideError, match="ended after 25 of 30 steps"):
        run("parts", interrupted(25), model(**options))
    parts = run("parts", stream, model(**options, seed=77))
    assert_same(state(parts.model), state(whole.model))
    assert parts.history == whole.history
    again = run("parts", stream, model(**options, seed=78))  # finished: the threshold is not set twice
    assert_same(state(again.model), state(whole.model))
    assert_same(state(TIDE.from_pretrained(tmp_path / "parts")), state(whole.model))


def test_a_kill_while_the_threshold_is_set_runs_the_last_steps_again(tmp_path, monkeypatch):
    options = {"activation": "jumprelu"}
    whole = trainer(tmp_path / "whole", model(**options), steps=30, checkpoint_every=20, **options)
    whole.fit(stream)
    killed = trainer(tmp_path / "parts", model(**options), steps=30, checkpoint_every=20, **options)
    with monkeypatch.context() as patch:
        patch.setattr(L0Match, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt, match="the checkpoint of step 20 is kept"):
            killed.fit(stream)
    resumed = trainer(tmp_path / "parts", model(**options), steps=30, checkpoint_every=20, **options)
    resumed.fit(stream, resume=True)
    assert_same(state(resumed.model), state(whole.model))


def test_a_state_with_a_negative_threshold_is_one_line(tmp_path):
    options = {"activation": "batch_topk"}
    with pytest.raises(TideError, match="ended"):
        trainer(tmp_path, model(**options), steps=10, checkpoint_every=4, **options).fit(interrupted(4))
    path = tmp_path / STATE
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file({**tensors, "model.activation.threshold": torch.tensor(-1.0)}, path, metadata)
    with pytest.raises(TideError, match=r"model.activation.threshold is negative; the resume state is damaged"):
        trainer(tmp_path, model(**options), steps=10, checkpoint_every=4, **options).fit(stream, resume=True)


# -- the bundled pipeline -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Bench:
    """Many scenes: L0 varies by a third from scene to scene, so that its mean over 2048 of them has a standard error of
    0.8 %, and the difference of two such means one of 1.1 %."""
    return Bench(
        DataSizes(
            train_images=2048, wide_images=2048, held_out_images=1024, token_fraction=1 / 4, sample_fraction=1 / 4,
            batch_tokens=512,
        )
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "k"),
    [pytest.param(options, k, id=f"{name}-{k}") for name, options in MATCHED.items() for k in (8, 16, 64)],
)
def test_other_scenes_are_within_3_percent_of_k(bench, options, k):
    """Scenes of the training's combinations that it has not seen. Beside them, those of other combinations."""
    config = TrainConfig(
        n_latents=768, k=k, steps=150, batch_tokens=512, checkpoint_every=10**9,
        loss=LossConfig(sparsity=0.3 if "match_l0" in options else 1.0), **options,
    )  # fmt: skip
    sae, _ = bench.fit(config, bench.train)
    found, elsewhere = (bench.reconstruction(sae, pool)["l0"] for pool in (bench.wide, bench.held_out))
    print(f"k = {k}: L0 {found:.2f} ({found / k - 1:+.1%}), of other combinations {elsewhere / k - 1:+.1%}")
    assert found == pytest.approx(k, rel=0.03)


def test_ranks_read_as_many_whole_batches_as_one_process():
    """Each of four ranks holds a quarter of the rows of every batch."""
    rows = MATCHED_ROWS // 8
    whole = list(following(repeat(batch(0, rows=rows)), batch(0, rows=rows), 100))
    part = list(following(repeat(batch(0, rows=rows // 4)), batch(0, rows=rows // 4), 100, parts=4))
    assert len(part) == len(whole) == 8

"""Training on activations of a known sparse dictionary."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from itertools import count, islice

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.trainings import (
    ROWS,
    D,
    K,
    N,
    assert_same,
    batch,
    config,
    interrupted,
    model,
    state,
    stream,
    trainer,
    with_target,
)
from tide.activations.memory import ActivationPool
from tide.adapters import adapter_for
from tide.errors import TideError
from tide.provenance import provenance
from tide.runs import contents, read_run
from tide.sae import TIDE, TIDEConfig
from tide.training import LossConfig, ProgressiveK, RevivalConfig, TrainConfig, Trainer, build_model
from tide.training.schedules import progressive_k
from tide.training.update import AdamW
from tide_kernels import LossOptions, native


def test_learns_a_sparse_dictionary(tmp_path):
    job = trainer(tmp_path, steps=300)
    sae = job.fit(stream())
    assert not sae.training
    first, last = job.history[0], job.history[-1]
    assert last["mse"] < 0.1 * first["mse"]
    assert last["cosine"] < 0.1 * first["cosine"]
    held_out = batch(10**6)
    with torch.no_grad():
        x_hat = sae(held_out.x, held_out.position)
    explained = 1 - (x_hat - held_out.x).square().sum() / (held_out.x - held_out.x.mean(0)).square().sum()
    assert explained > 0.95


@pytest.mark.parametrize(
    "source",
    [
        lambda: list(islice(stream(), 6)),
        lambda: iter(list(islice(stream(), 6))),
        lambda: stream,
        stream,
        lambda: ActivationPool(islice(stream(), 2), ROWS).from_step,
    ],
    ids=["list", "iterator", "function of the step", "endless generator", "pool"],
)
def test_takes_batches_from_anywhere(tmp_path, source):
    job = trainer(tmp_path, steps=6)
    job.fit(source())
    assert job.step == 6


def test_batches_without_pairs_or_modulation(tmp_path):
    """No pairs, no temporal loss, whatever its weight."""
    sae = TIDE(TIDEConfig(D, N, K))
    job = trainer(tmp_path, sae, steps=4, log_every=1, loss=LossConfig(temporal=100.0))
    job.fit(batch(i, paired=False) for i in range(4))
    assert [entry["temporal"] for entry in job.history] == [0.0] * 4


def test_what_is_written(tmp_path):
    job = trainer(tmp_path / "run")
    job.fit(stream())
    out = tmp_path / "run"
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "model.safetensors", "resume", "run.json", "tensorboard", "training.json",
    ]  # fmt: skip
    assert_same(state(TIDE.from_pretrained(out)), state(job.model))
    written = json.loads((out / "training.json").read_text())
    assert TrainConfig.from_dict(written["config"]) == job.config
    assert [entry["step"] for entry in written["history"]] == [10, 20, 30, 40, 50, 60]
    names = {
        "loss", "mse", "explained_variance", "cosine", "temporal", "sparsity", "gradient_norm", "k", "lr", "l0",
        "silent", "revived",
    }  # fmt: skip
    assert written["history"][0].keys() == names | {"step"}
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {f"train/{name}" for name in names}
    logged = events.Scalars("train/mse")
    assert [event.step for event in logged] == [10, 20, 30, 40, 50, 60]
    assert [event.value for event in logged] == pytest.approx([entry["mse"] for entry in written["history"]])


def test_its_folder_says_what_it_holds(tmp_path):
    job = trainer(tmp_path / "run", steps=20)
    job.fit(stream, data={"name": "dictionary"}, weights={"transformer": "00"}, made_by=provenance("study", seed=3))
    holds, run = contents(tmp_path / "run"), read_run(tmp_path / "run")
    assert (holds.kind, holds.blocks, holds.family) == ("autoencoder", [6], "pixart")
    assert (holds.data, holds.weights) == ({"name": "dictionary"}, {"transformer": "00"})
    assert holds.configuration == json.loads(json.dumps(job.config.to_dict()))
    assert holds.measured["mse"] == job.history[-1]["mse"]
    assert (run["command"], run["seed"]) == ("study", 3)
    assert all((tmp_path / "run" / name).exists() for name in holds.files)


def test_a_damaged_run_json_is_found_before_the_work(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text("{")
    with pytest.raises(TideError, match=r"run\.json is not valid JSON"):
        trainer(tmp_path / "run").fit(lambda step: pytest.fail("trained"))
    assert (tmp_path / "run/run.json").read_text() == "{"


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(TideError, match="device 'tpu' is not supported; use cpu"):
        trainer(tmp_path / "run", device="tpu")


def test_k_and_learning_rate_follow_their_schedules(tmp_path):
    shape = ProgressiveK(start=3.0, length=0.5, shape="linear")
    job = trainer(tmp_path, log_every=1, steps=20, progressive_k=shape, lr=1e-3, warmup=0.1, final_lr=0.5)
    job.fit(stream())
    assert [entry["k"] for entry in job.history] == [progressive_k(i, 20, K, N, shape) for i in range(20)]
    rates = [entry["lr"] for entry in job.history]
    assert rates[0] == pytest.approx(5e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(5e-4)


def test_the_modulation_learns_at_its_share_of_the_rate(tmp_path):
    """Adam's first step is as long as the rate wherever there is a gradient."""
    job = trainer(tmp_path, steps=1, log_every=1, lr=1e-3, modulation_lr=0.25, warmup=0.0, weight_decay=0.0)
    before = state(job.model)
    job.fit(stream())
    moved = {name: float((value - before[name]).abs().max()) for name, value in state(job.model).items()}
    assert moved["W_dec"] == pytest.approx(1e-3, rel=0.01)
    assert moved["modulation.linear.weight"] == pytest.approx(0.25e-3, rel=0.01)


def test_the_regularisation_is_part_of_the_loss(tmp_path):
    """Eq. 17. The first step's figures are those before any update, so that the terms can be added up."""
    loss = LossConfig(mse=2.0, cosine=0.5, temporal=1e-2, sparsity=0.3, reg=1e-3)
    job = trainer(tmp_path, steps=1, log_every=1, loss=loss)
    # Both weights start with 32 unit rows.
    job.fit(stream())
    (entry,) = job.history
    terms = 2 * entry["mse"] + 0.5 * entry["cosine"] + 1e-2 * entry["temporal"] + 0.3 * entry["sparsity"]
    assert entry["loss"] == pytest.approx(terms + 1e-3 * 2 * N, rel=1e-5)


def test_the_sparsity_target_is_a_share_of_the_scheduled_k(tmp_path):
    """Eq. 16: S cannot exceed k / n, and k starts at four times its last value."""
    expected = model()
    first = batch(0)
    expected.calibrate(first.x, first.position)
    terms = expected.loss(first.x, first.position, LossOptions(4 * K, s_target=0.8 * 4 * K / N, delta=0.01))
    job = trainer(tmp_path, steps=1, log_every=1, progressive_k=ProgressiveK(start=4.0, length=1.0))
    job.fit([first])
    assert job.history[0]["sparsity"] == pytest.approx(float(terms.sparsity), rel=1e-6)


def test_the_gradient_is_clipped(tmp_path, monkeypatch):
    """The gradients that enter the moments have a norm of ``clip``."""
    clipped = []
    begin = AdamW.update

    def watching(self, norm, clip, skip=None):
        assert float(torch.cat([g.flatten() for g in self.gradients()]).norm()) == pytest.approx(float(norm), rel=1e-5)
        beta = self.param_groups[0]["betas"][0]
        before = {p: state["exp_avg"].clone() for p, state in self.state.items()}
        begin(self, norm, clip, skip)
        entered = [(s["exp_avg"] - beta * before.get(p, 0)).flatten() / (1 - beta) for p, s in self.state.items()]
        clipped.append(float(torch.cat(entered).norm()))

    monkeypatch.setattr(AdamW, "update", watching)
    job = trainer(tmp_path, steps=3, clip=1e-2, log_every=1)
    job.fit(stream())
    assert all(entry["gradient_norm"] > 1e-2 for entry in job.history)  # reported before clipping
    assert clipped == pytest.approx([1e-2] * 3, rel=1e-4)


def test_the_loss_adds_up_the_squares_of_its_gradients(tmp_path):
    """On the compiled kernels the norm is known without a pass over the weights' gradients."""
    if (reason := native.unavailable()) is not None:
        pytest.skip(f"native: {reason}")
    job = trainer(tmp_path, steps=2)
    job.fit(stream())
    assert not math.isnan(float(job._squares))


def test_bf16_trains_float32_weights(tmp_path):
    job = trainer(tmp_path, steps=20, precision="bf16")
    job.fit(stream())
    assert {p.dtype for p in job.model.parameters()} == {torch.float32}
    assert job.history[-1]["mse"] < job.history[0]["mse"]


def test_explained_variance_is_of_the_batch_that_mse_is_of(tmp_path):
    job = trainer(tmp_path, model(centre=True), steps=1, log_every=1)
    before, first = state(job.model), batch(0)
    job.fit([first])
    start = model(centre=True)
    start.load_state_dict({**before, **{n: v for n, v in state(job.model).items() if n.startswith("activation_")}})
    start.calibrate(first.x, first.position)
    error = job.history[0]["mse"] * float(start.activation_scale) ** 2
    assert job.history[0]["explained_variance"] == pytest.approx(1 - error / float(first.x.var(0, correction=0).mean()))


def test_explained_variance_is_of_all_latents(tmp_path):
    """Of the same weights and batch, whereas the logged mse is a mean over prefixes."""
    first = {}
    for prefixes in ((), (0.25,)):
        job = trainer(tmp_path / str(prefixes), steps=1, log_every=1, loss=LossConfig(prefixes=prefixes))
        job.fit(stream())
        first[prefixes] = job.history[0]
    assert first[(0.25,)]["explained_variance"] == pytest.approx(first[()]["explained_variance"], rel=1e-6)
    assert first[(0.25,)]["mse"] != pytest.approx(first[()]["mse"], rel=0.05)


@pytest.mark.parametrize("undo", [False, True], ids=["fused", "composed"])
def test_prefixes_nest_dictionaries(tmp_path, undo):
    """Eight of 32 latents cannot hold 16 directions; they hold more of them if they are trained to."""
    errors, held_out = {}, batch(10**6)
    for prefixes in ((), (0.25,)):
        job = trainer(tmp_path / str(prefixes), model(undo=undo), steps=200, loss=LossConfig(prefixes=prefixes))
        sae = job.fit(stream())
        with torch.no_grad():
            prefix = sae.encode(held_out.x, held_out.position, prefix=8)
            errors[prefixes] = float((sae.decode(prefix, held_out.position) - held_out.x).square().mean())
    assert errors[(0.25,)] < 0.8 * errors[()]


@pytest.mark.parametrize(
    "options",
    [{"activation": "topk"}, {"activation": "jumprelu"}, {"activation": "relu"}],
    ids=lambda o: o["activation"],
)
def test_a_transcoder_learns_its_module(tmp_path, options):
    sae = model(tensor="feed_forward_input", target="feed_forward", **options)
    job = trainer(tmp_path, sae, steps=400, **options)
    job.fit(with_target(batch(seed)) for seed in count())
    held_out = with_target(batch(10**6))
    with torch.no_grad():
        error = (sae(held_out.x, held_out.position) - held_out.target).square().sum()
    explained = 1 - error / (held_out.target - held_out.target.mean(0)).square().sum()
    assert explained > 0.8
    assert job.history[-1]["explained_variance"] > 0.8


def test_a_transcoder_does_not_train_without_targets(tmp_path):
    job = trainer(tmp_path, model(tensor="feed_forward_input", target="feed_forward"), steps=4)
    with pytest.raises(TideError, match=r"^this TIDE is a transcoder of feed_forward; pass the target as well$"):
        job.fit(stream())


def test_explained_variance_of_rows_that_do_not_vary(tmp_path):
    same = batch(0, rows=30)  # no power of two, so that a mean in float32 is rounded
    same.x = same.x[:1].expand(30, D)
    job = trainer(tmp_path, steps=1, log_every=1)
    job.fit([same])
    assert job.history[0]["explained_variance"] != job.history[0]["explained_variance"]  # NaN


# -- the start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "rows", "read"),
    [(60, ROWS, 60), (200, ROWS, 128), (60, 2048, 8), (5, 2048, 5)],
    ids=["all of a short run", "8192 rows", "8 batches", "no more than there are steps"],
)
def test_the_mean_is_of_the_first_batches(tmp_path, monkeypatch, steps, rows, read):
    """And they are trained on in the same order as ever."""
    seen = []
    figures = {"mse": 0.0, "whole": 0.0, "cosine": 0.0, "k": 1.0}
    monkeypatch.setattr(Trainer, "train_step", lambda self, batch: seen.append(batch.x) or dict(figures))
    sae = model(centre=True)
    batches = [batch(i, rows=rows) for i in range(steps)]
    trainer(tmp_path, sae, steps=steps).fit(batches)
    whole = torch.cat([each.x for each in batches[:read]]).double()
    torch.testing.assert_close(sae.activation_mean, whole.mean(0).float())
    torch.testing.assert_close(sae.activation_scale, (whole - whole.mean(0)).square().mean().sqrt().float())
    assert len(seen) == steps
    assert all(torch.equal(x, each.x) for x, each in zip(seen, batches, strict=True))


def test_without_centring_the_scale_is_of_the_first_batch_and_nothing_is_read_ahead(tmp_path):
    handed: list[int] = []

    def source():
        for i in count():
            handed.append(i)
            yield batch(i)

    job = trainer(tmp_path, steps=3)
    watched: list[tuple[int, int]] = []
    job.fit(source(), watch=lambda _, step: watched.append((step, len(handed))))
    assert watched == [(0, 1), (1, 2), (2, 3)]
    torch.testing.assert_close(job.model.activation_scale, batch(0).x.square().mean().sqrt())


def test_a_bad_batch_among_the_first_is_refused_before_anything_is_written(tmp_path):
    bad = batch(4)
    bad.x[0, 0] = 1e30
    with pytest.raises(TideError, match=r"^the first activations reach 1e\+30"):
        trainer(tmp_path / "run", model(centre=True)).fit(bad if i == 4 else batch(i) for i in count())
    assert not (tmp_path / "run").exists()


def test_one_channel_that_rules_is_said_once(tmp_path):
    def spiked():
        for each in stream():
            each.x[:, 2] += 300
            yield each

    with pytest.warns(UserWarning, match="channel 2 holds 100% of the energy") as caught:
        trainer(tmp_path / "a", steps=3).fit(spiked())
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path / "b", model(centre=True), steps=3).fit(spiked())


# -- interruption ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True], ids=["not centred", "centred"])
@pytest.mark.parametrize("stop", [35, 40], ids=["after a checkpoint and a log", "at a checkpoint"])
def test_resume_is_bit_equal_to_an_uninterrupted_run(tmp_path, stop, centre):
    """Steps after the last checkpoint are run again; revival and progressive k resume where they were."""
    pool = ActivationPool(islice(stream(), 5), ROWS, seed=4)
    whole = trainer(tmp_path / "whole", model(centre=centre))
    whole.fit(pool.from_step)
    assert whole.revived > 0  # or resuming its counters would not be tested
    first = trainer(tmp_path / "parts", model(centre=centre))
    with pytest.raises(TideError, match=f"ended after {stop} of 60 steps"):
        first.fit(interrupted(stop, pool.from_step))
    second = trainer(tmp_path / "parts", TIDE(model(centre=centre).config, seed=77))
    starts = []
    second.fit(lambda start: (starts.append(start), pool.from_step(start))[1], resume=True)
    assert starts == [stop // 20 * 20]
    assert_same(state(second.model), state(whole.model))
    assert second.history == whole.history
    assert second.revived == whole.revived
    events = EventAccumulator(str(tmp_path / "parts" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/mse")] == [10, 20, 30, 40, 50, 60]


def test_resume_without_a_checkpoint_starts(tmp_path):
    fresh, resumed = trainer(tmp_path / "a", steps=5), trainer(tmp_path / "b", steps=5)
    fresh.fit(stream())
    resumed.fit(stream, resume=True)
    assert_same(state(fresh.model), state(resumed.model))


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    job = trainer(tmp_path, steps=5)
    job.fit(stream())
    again = trainer(tmp_path, TIDE(model().config, seed=5), steps=5)
    again.fit(stream, resume=True)
    assert_same(state(again.model), state(job.model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lr": 1e-2},
            r"was started with other options \(lr 0.02, now 0.01\); use the same configuration or another folder",
        ),
        ({"loss": LossConfig(mse=3.0)}, r"other options \(loss.mse 1.0, now 3.0\)"),
        ({"seed": 2}, r"other options \(seed 0, now 2\)"),
    ],
)
def test_resume_with_another_configuration_is_refused(tmp_path, options, message):
    trainer(tmp_path, steps=5).fit(stream())
    with pytest.raises(TideError, match=message):
        trainer(tmp_path, steps=5, **options).fit(stream, resume=True)


def test_resume_on_another_block_is_refused(tmp_path):
    trainer(tmp_path, steps=5).fit(stream())
    with pytest.raises(TideError, match=r"was started with other options \(block 6, now 5\)"):
        trainer(tmp_path, model(block=5), steps=5).fit(stream, resume=True)


def test_resume_may_log_and_save_at_other_times(tmp_path):
    trainer(tmp_path, steps=5).fit(stream())
    trainer(tmp_path, steps=5, log_every=1, checkpoint_every=1).fit(stream, resume=True)


def test_a_truncated_resume_state_is_named(tmp_path):
    trainer(tmp_path, steps=5).fit(stream())
    path = tmp_path / "resume" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TideError, match=r"state\.safetensors is not a readable safetensors file"):
        trainer(tmp_path, steps=5).fit(stream, resume=True)


def test_batches_that_end_early(tmp_path):
    job = trainer(tmp_path, steps=5)
    with pytest.raises(TideError, match=r"^the activations ended after 3 of 5 steps; collect more or lower steps$"):
        job.fit(islice(stream(), 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_not_finite(tmp_path, bad):
    """In the first batch and later on; what was saved before stays."""

    def spoilt(at: int):
        for i in count():
            good = batch(i)
            if i == at:
                good.x[5, 2] = bad
            yield good

    with pytest.raises(TideError, match="the first activations hold NaN or inf"):
        trainer(tmp_path / "first").fit(spoilt(0))
    assert not (tmp_path / "first" / "model.safetensors").exists()
    job = trainer(tmp_path / "later")
    kind = "NaN" if bad != bad else "inf"
    with pytest.raises(TideError, match=rf"^activations of block 6 hold {kind} at timestep 850; use a wider dtype"):
        job.fit(spoilt(22))
    saved = TIDE.from_pretrained(tmp_path / "later")
    assert all(value.isfinite().all() for value in saved.state_dict().values())
    assert all(value.isfinite().all() for value in job.model.state_dict().values())


def test_a_gradient_that_is_not_finite(tmp_path):
    job = trainer(tmp_path, steps=3)
    add_gradients = job.model.add_gradients

    def spoilt(*args, **options):
        terms = add_gradients(*args, **options)
        job.model.W_dec.grad[0, 0] = math.inf
        options["squares"].fill_(math.inf)
        return terms

    job.model.add_gradients = spoilt
    with pytest.raises(TideError, match=r"^the gradient is not finite at step 0; lower lr \(0.0001\) or train in fp32"):
        Trainer(job.model, replace(job.config, lr=1e-4), tmp_path, progress=False).fit(stream())


@pytest.mark.parametrize("size", [1e20, 1e30])
def test_finite_activations_whose_loss_is_not(tmp_path, size):
    """Their squares overflow float32. What was saved before stays, and the curves hold numbers alone."""

    def spoilt():
        for i in count():
            good = batch(i)
            if i == 22:
                good.x[5, 2] = size
            yield good

    job = trainer(tmp_path)
    with pytest.raises(TideError, match=r"^the loss is not finite at step 22; lower lr \(0.02\) or train in fp32$"):
        job.fit(spoilt())
    assert job.saved == 20
    saved = TIDE.from_pretrained(tmp_path)
    assert all(value.isfinite().all() for value in saved.state_dict().values())
    assert all(math.isfinite(value) for entry in job.history for value in entry.values())


def test_a_figure_that_is_no_number_is_null_in_json(tmp_path):
    """As a share of a variance of 0. The resumed curves are the same again."""
    job = trainer(tmp_path, steps=1)
    job.fit(stream)
    job.history[0]["share"] = math.nan
    job.save()
    written = (tmp_path / "training.json").read_text()
    assert '"share": null' in written
    again = trainer(tmp_path, steps=1)
    again.fit(stream, resume=True)
    assert math.isnan(again.history[0]["share"])
    assert (tmp_path / "training.json").read_text() == written


# -- revival --------------------------------------------------------------------------------------------------


def test_revival_leaves_fewer_dead_latents(tmp_path):
    """Three quarters of the 32 latents start where no token reaches them; the data have 16 directions."""

    def run(every: int) -> tuple[int, int, float]:
        sae = model()
        job = trainer(
            tmp_path / str(every), sae, steps=200, progressive_k=ProgressiveK(shape="off"), weight_decay=0.0,
            revival=RevivalConfig(after_tokens=4 * ROWS, every=every),
        )  # fmt: skip
        calibrate = sae.calibrate

        def unreachable(*args, **options):
            moments = calibrate(*args, **options)
            with torch.no_grad():
                sae.b_enc[8:] -= 100.0
            return moments

        sae.calibrate = unreachable
        job.fit(stream())
        held_out = batch(10**6, rows=1024)
        codes = sae.encode(held_out.x, held_out.position)
        dead = int((codes.dense(N) > 0).any(0).logical_not().sum())
        return dead, job.revived, job.history[-1]["mse"]

    dead_without, revived_without, mse_without = run(every=0)
    dead_with, revived_with, mse_with = run(every=5)
    assert revived_without == 0
    assert dead_without >= 24
    assert revived_with >= 16
    assert dead_with <= 18
    assert mse_with < 0.1 * mse_without


def test_no_revival_at_the_end(tmp_path, monkeypatch):
    """A latent restarted in the last tenth of the steps would not have time to settle."""
    steps = []
    job = trainer(tmp_path, steps=40, revival=RevivalConfig(after_tokens=1, every=1))
    revive = job.revival.revive
    monkeypatch.setattr(job.revival, "revive", lambda *args, **kw: (steps.append(job.step), revive(*args, **kw))[1])
    job.fit(stream())
    assert steps
    assert max(steps) <= 36


def test_the_auxiliary_loss_instead(tmp_path):
    loss = LossConfig(auxk=0.1, k_aux=4)
    job = trainer(tmp_path, steps=30, loss=loss, revival=RevivalConfig(after_tokens=ROWS, every=0))
    job.fit(stream())
    assert job.revived == 0
    assert job.history[-1]["mse"] < job.history[0]["mse"]


def test_a_frozen_modulation_stays(alpha, tmp_path):
    sae = build_model(
        adapter_for(alpha), 6, TrainConfig(n_latents=16, k=4, modulation_init="adaln", modulation_trainable=False)
    )
    before = state(sae)
    rows = batch(0)
    wide = [replace(rows, x=torch.randn(ROWS, 192)) for _ in range(3)]
    Trainer(sae, config(steps=3, n_latents=16, k=4), tmp_path, progress=False).fit(wide)
    after = state(sae)
    for name in before:
        assert torch.equal(before[name], after[name]) is name.startswith("modulation."), name

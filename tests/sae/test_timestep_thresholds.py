"""Thresholds that know the timestep: the gain, its gradients, and what it is on disk."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tide.adapters import adapter_for
from tide.errors import TideError
from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig
from tide.sae.activation import TIMED, BatchTopK, JumpReLU
from tide.sae.activation.gain import RANK, SPEED, TimestepGain
from tide.sae.composed import composed_loss
from tide.sae.revival import Revival
from tide.scenes import load_pipeline
from tide_kernels import LossOptions, LossWeights, tide_loss

D, N, K, E = 12, 40, 5, 16
MODULATION = ModulationConfig(d_model=D, d_embedding=E, n_frequencies=8)
TIMESTEP = torch.tensor([40.0, 500.0, 900.0])
GROUP = torch.arange(30, dtype=torch.int32) % 3
AT = Position(TIMESTEP, group=GROUP)


def rows(n: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def model(activation: str, *, timed: bool = True, moved: bool = False) -> TIDE:
    """Calibrated; ``moved`` has every parameter moved off its initial value, so that gains differ."""
    sae = TIDE(TIDEConfig(D, N, K, modulation=MODULATION, activation=activation, timestep_thresholds=timed), seed=1)
    sae.calibrate(rows(30, 7), AT)
    sae.loss(rows(), AT)  # BatchTopK learns its threshold
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters() if moved else ():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae


def embedding(sae: TIDE) -> torch.Tensor:
    return sae.modulation.embedding(TIMESTEP)


def gain(seed: int = 0, n_latents: int = N) -> TimestepGain:
    """With parameters that are all different from 0."""
    generator = torch.Generator().manual_seed(seed)
    made = TimestepGain(n_latents, E, generator).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return made


# -- the gain -------------------------------------------------------------------------------------------------


def test_the_gain_is_its_formula():
    made, temb = gain(), 3 + torch.randn(4, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    e = (temb - temb.mean(1, keepdim=True)) / (temb.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    g = SPEED * made.common / math.sqrt(E)
    U = SPEED * made.by_latent / math.sqrt(RANK)
    V = made.projection / math.sqrt(E)
    expected = (e @ g)[:, None] + torch.stack([U @ (V @ each) for each in e])
    torch.testing.assert_close(made(temb), expected.exp())


def test_the_rank_holds_how_the_embedding_varies():
    """Of the bundled pipeline, over all timesteps of its schedule."""
    modulation = adapter_for(load_pipeline()).modulation(6)
    with torch.no_grad():
        e = F.layer_norm(modulation.embedding(torch.arange(1000.0)), (192,))
    energy = torch.linalg.svdvals(e - e.mean(0)).square()
    assert energy[:RANK].sum() / energy.sum() == pytest.approx(0.98, abs=0.005)


def test_gradients_of_the_gain():
    made, temb = gain(), torch.randn(3, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    names = [name for name, _ in made.named_parameters()]

    def gains(temb: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (temb,))

    torch.autograd.gradcheck(gains, (temb.requires_grad_(), *made.parameters()))


@pytest.mark.parametrize("activation", TIMED)
def test_at_the_start_it_is_the_plain_threshold(activation):
    """To the bit, whatever the timestep."""
    timed, plain = model(activation), model(activation, timed=False)
    plain.load_state_dict({n: v for n, v in timed.state_dict().items() if ".gain." not in n})
    found = timed.activation.thresholds(embedding(timed))
    assert found.shape == (3, N)
    assert torch.equal(found, plain.activation.thresholds().expand(3, N))
    with torch.no_grad():
        assert torch.equal(timed(rows(), AT), plain(rows(), AT))


@pytest.mark.parametrize("activation", TIMED)
def test_a_token_has_the_threshold_of_its_timestep(activation):
    sae, x = model(activation, moved=True), rows()
    thresholds = sae.activation.thresholds(embedding(sae)).detach()
    assert float((thresholds[0] / thresholds[2]).log().abs().min()) > 0  # or the test would not see which is used
    pre = sae.pre_activations(sae.normalised(x), sae.modulation_of(len(x), AT))
    expected = torch.where(pre > thresholds[GROUP.long()], pre, 0)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    with torch.no_grad():
        # To rounding: some versions of torch add a product up in another order where gradients are off.
        torch.testing.assert_close(sae.encode(x, AT).dense(N), expected, rtol=1e-5, atol=1e-6)
        for group, timestep in enumerate(TIMESTEP):  # a token does not depend on those of other timesteps
            alone = sae.encode(x[GROUP == group], float(timestep)).dense(N)
            torch.testing.assert_close(alone, expected[GROUP == group], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", TIMED)
def test_the_loss_reaches_every_parameter_of_the_gain(activation):
    sae = model(activation, moved=True)
    sae.loss(rows(), AT, LossOptions(K, weights=LossWeights(sparsity=0.3))).total.backward()
    for name, parameter in sae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("activation", TIMED)
def test_the_loss_is_the_fused_op_with_the_thresholds_of_the_timestep(activation):
    sae, x = model(activation, moved=True).eval(), rows()
    assert sae.fused
    options = LossOptions(K, weights=LossWeights(sparsity=0.3))
    terms = sae.loss(x, AT, options)
    modulation = sae.modulation_of(len(x), AT)
    weights = {name: getattr(sae, name) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    given = options._asdict() | {"activation": activation, "bandwidth": sae.config.bandwidth}
    expected = tide_loss(sae.normalised(x), **weights, **modulation.tables(), **given, threshold=modulation.threshold)
    assert all(torch.equal(got, want) for got, want in zip(terms, expected, strict=True))


def test_the_fused_loss_moves_the_stored_threshold_of_batch_topk_as_the_composed_one():
    """By the least height, in units of the thresholds; in training alone."""
    sae, x = model("batch_topk", moved=True), rows()
    stored = {}
    for name in ("fused", "composed"):
        sae.activation.threshold.fill_(0.3)
        if name == "fused":
            sae.loss(x, AT)
        else:
            composed_loss(sae, *sae._entering(x, AT), LossOptions(K), None)
        stored[name] = float(sae.activation.threshold)
    assert stored["fused"] != pytest.approx(0.3, rel=1e-3)
    assert stored["fused"] == pytest.approx(stored["composed"], rel=1e-6)
    sae.eval().loss(x, AT)
    assert float(sae.activation.threshold) == stored["composed"]


# -- straight-through gradients ---------------------------------------------------------------------------------


def thresholds_and_rows(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``threshold [3, 6]``, ``pre [30, 6]`` and what z passes back, in float64."""
    generator = torch.Generator().manual_seed(seed)
    threshold = 0.5 + torch.rand(3, 6, generator=generator, dtype=torch.float64)
    pre, grad = torch.randn(2, 30, 6, generator=generator, dtype=torch.float64)
    return threshold.requires_grad_(), pre.requires_grad_(), grad


def by_hand(threshold: torch.Tensor, factor: torch.Tensor, pre: torch.Tensor, width: float) -> torch.Tensor:
    """``-(1 / width) sum factor`` over the places near their threshold, by row of the threshold."""
    out = torch.zeros_like(threshold)
    for i, group in enumerate(GROUP.tolist()):
        near = (pre[i] - threshold[group]).abs() < width / 2
        out[group] -= torch.where(near, factor[i], 0) / width
    return out


def test_jumprelu_passes_back_to_the_threshold_of_the_timestep():
    rule = JumpReLU(6, 0.7)
    threshold, pre, grad = thresholds_and_rows()
    rule(pre, None, threshold, GROUP).backward(grad)
    theta = threshold.detach()
    torch.testing.assert_close(threshold.grad, by_hand(theta, grad * theta[GROUP.long()], pre.detach(), 0.7))
    torch.testing.assert_close(pre.grad, torch.where(pre > theta[GROUP.long()], grad, 0))
    threshold.grad = None
    rule.active(pre, threshold, GROUP).sum().backward()
    torch.testing.assert_close(threshold.grad, by_hand(theta, torch.ones_like(grad), pre.detach(), 0.7))


def timed_batch_topk() -> BatchTopK:
    return BatchTopK(6, 0.7, gain=gain(n_latents=6)).double().eval()


def test_batch_topk_keeps_the_highest_above_their_thresholds():
    """In the order of pre / threshold; as many as without a gain."""
    rule = timed_batch_topk()
    threshold, pre, _ = thresholds_and_rows()
    heights = (pre / threshold[GROUP.long()]).detach()
    z = rule.training_latents(pre, None, 1, threshold, GROUP)
    kept, left = heights[z > 0], heights[z == 0]
    assert kept.min() >= left.max()
    assert len(kept) == 30
    assert torch.equal(z[z > 0], pre[z > 0])


def test_batch_topk_passes_back_with_a_cut_that_moves():
    """dz/dtheta is JumpReLU's at the thresholds c theta, and c falls as they rise: ``sum K dtheta`` of it is 0."""
    rule = timed_batch_topk()
    threshold, pre, grad = thresholds_and_rows()
    rule.training_latents(pre, None, 1, threshold, GROUP).backward(grad)
    theta, row = threshold.detach(), GROUP.long()
    c = (pre.detach() / theta[row]).flatten().topk(30).values.min()
    to_cut = by_hand(c * theta, grad * c * theta[row], pre.detach(), 0.7)  # of the thresholds c theta
    near = -by_hand(c * theta, torch.ones_like(grad), pre.detach(), 0.7)
    expected = c * (to_cut - near * (to_cut * theta).sum() / (near * theta).sum())
    torch.testing.assert_close(threshold.grad, expected)
    # All thresholds times a number select the same: no gradient in that direction.
    assert abs(float((threshold.grad * theta).sum())) < 1e-10


def test_autocast_changes_nothing():
    """Sums of thousands of places and exponentials are not taken in bf16."""

    def gradient() -> torch.Tensor:
        rule, (threshold, pre, grad) = timed_batch_topk().float(), thresholds_and_rows()
        threshold = threshold.detach().float().requires_grad_()
        temb = torch.randn(3, E, generator=torch.Generator().manual_seed(1))
        rule.training_latents(pre.detach().float(), None, 1, threshold * rule.gain(temb), GROUP).backward(grad.float())
        return threshold.grad

    exact = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(), exact)


def test_batch_topk_keeps_all_where_fewer_are_positive():
    rule = timed_batch_topk()
    threshold, pre, _ = thresholds_and_rows()
    few = -pre.detach().abs()
    few[0, 0] = 2.0
    assert rule.training_latents(few, None, 1, threshold, GROUP).sum() == 2.0


def test_the_stored_threshold_of_batch_topk_is_in_units_of_the_gain():
    """Its first value is that of its first batch: the threshold is then the batch's cut at every timestep."""
    rule = timed_batch_topk().train()
    temb = torch.randn(3, E, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, pre, _ = thresholds_and_rows()
    z = rule.training_latents(pre, None, 1, rule.thresholds(temb), GROUP)
    at_inference = rule(pre, None, rule.thresholds(temb), GROUP)
    assert int(((z > 0) != (at_inference > 0)).sum()) <= 1  # the one at the cut
    assert float(rule.threshold) > 0.01


# -- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", TIMED)
def test_revival_restarts_the_gain_of_revived_latents_alone(activation):
    sae = model(activation, moved=True)
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2)
    sae.loss(rows(), AT, LossOptions(K, weights=LossWeights(sparsity=0.3))).total.backward()
    optimizer.step()
    gained = sae.activation.gain
    before = {name: value.clone() for name, value in gained.state_dict().items()}
    moments = {p: optimizer.state[p]["exp_avg"].clone() for p in gained.parameters()}
    revival = Revival(N, after_tokens=10)
    revival.silent_for[[3, 9]] = 10
    revival.revive(sae, optimizer, rows(64), torch.zeros(64, D), torch.Generator().manual_seed(0))
    revived = torch.zeros(N, dtype=torch.bool).index_fill(0, torch.tensor([3, 9]), True)
    assert not gained.by_latent[revived].any()
    assert torch.equal(gained.by_latent[~revived], before["by_latent"][~revived])
    assert not optimizer.state[gained.by_latent]["exp_avg"][revived].any()
    for name in ("common", "projection"):
        parameter = getattr(gained, name)
        assert torch.equal(parameter, before[name])
        assert torch.equal(optimizer.state[parameter]["exp_avg"], moments[parameter])


# -- options and checkpoints --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation": "topk", "modulation": MODULATION},
            "timestep_thresholds need activation = batch_topk or jumprelu, not topk",
        ),
        ({"activation": "jumprelu"}, "timestep_thresholds follow the modulation's embedding; give modulation=... or"),
    ],
    ids=["no thresholds", "no modulation"],
)
def test_bad_options(options, message):
    with pytest.raises(TideError, match=message):
        TIDEConfig(D, N, K, timestep_thresholds=True, **options)


GAIN = {"activation.gain.common", "activation.gain.by_latent", "activation.gain.projection"}


@pytest.mark.parametrize("activation", TIMED)
def test_round_trip(tmp_path, activation):
    sae = model(activation, moved=True)
    sae.save_pretrained(tmp_path)
    assert {name for name in load_file(tmp_path / "model.safetensors") if "gain" in name} == GAIN
    loaded = TIDE.from_pretrained(tmp_path)
    assert loaded.config == sae.config
    with torch.no_grad():
        assert torch.equal(loaded(rows(), AT), sae(rows(), AT))


@pytest.mark.parametrize("activation", ["relu", "batch_topk", "jumprelu", "gated"])
def test_a_checkpoint_from_before_these_options_loads(tmp_path, activation):
    sae = model(activation, timed=False)
    sae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["timestep_thresholds"], config["match_l0"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = TIDE.from_pretrained(tmp_path)
    assert loaded.config == sae.config
    with torch.no_grad():
        assert torch.equal(loaded(rows(), AT), sae(rows(), AT))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"activation": "batch_topk"}, "activation.threshold"),
        ({"activation": "relu", "match_l0": True}, "activation.threshold"),
        ({"activation": "gated", "match_l0": True}, "activation.threshold"),
        ({"activation": "jumprelu", "timestep_thresholds": True}, "activation.gain.common"),
    ],
)
def test_a_checkpoint_without_its_threshold_is_one_line(tmp_path, options, name):
    TIDE(TIDEConfig(D, N, K, modulation=MODULATION, **options)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TideError, match=f"lacks {name}; config.json and model.safetensors are of different") as caught:
        TIDE.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)

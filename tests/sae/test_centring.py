"""Subtracting each channel's mean: its algebra, what it is for, and models from before it."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tide.activations import ActivationBatch
from tide.editing.context import edited_activations
from tide.editing.edits import Erase, Place, Scale
from tide.errors import TideError
from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig
from tide.sae.activation import ACTIVATIONS
from tide.sae.normalisation import Moments
from tide.training import LossConfig, RevivalConfig, TrainConfig, Trainer
from tide_kernels import LossOptions, LossWeights

D, N, K = 12, 40, 5
MODULATION = ModulationConfig(d_model=D, d_embedding=16, n_frequencies=8)
TIMESTEP = torch.tensor([50.0, 900.0])
BEFORE = Path(__file__).parent / "data" / "before_centre"


def rows(n: int = 20, seed: int = 0) -> torch.Tensor:
    """One channel around 300.7, the others around their number."""
    x = torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) + torch.arange(D)
    x[:, 3] += 300.7
    return x


def position(n: int = 20) -> Position:
    return Position(TIMESTEP, group=torch.arange(n, dtype=torch.int32) % 2)


def model(*, centre: bool = True, modulated: bool = True, **options) -> TIDE:
    """Calibrated, every parameter moved off its start."""
    config = TIDEConfig(D, N, K, modulation=MODULATION if modulated else None, centre=centre, **options)
    made = TIDE(config, seed=1)
    made.calibrate(rows(400, 9), position(400))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def without_centring(sae: TIDE) -> TIDE:
    """The same parameters and scale, without the mean."""
    options = {name: getattr(sae.config, name) for name in ("modulation", "pre_norm", "undo", "activation")}
    plain = TIDE(TIDEConfig(D, N, K, **options))
    plain.load_state_dict({name: value for name, value in sae.state_dict().items() if name != "activation_mean"})
    return plain


VARIANTS = [
    pytest.param({}, id="topk"),
    pytest.param({"pre_norm": "layernorm"}, id="layernorm"),
    pytest.param({"undo": True}, id="undo"),
    pytest.param({"undo": True, "pre_norm": "layernorm"}, id="undo of a layernorm"),
    pytest.param({"modulated": False}, id="no modulation"),
    *(pytest.param({"activation": name}, id=name) for name in ACTIVATIONS),
    *(pytest.param({"activation": name, "undo": True}, id=f"{name}, undo") for name in ACTIVATIONS),
]


@pytest.mark.parametrize("options", VARIANTS)
def test_is_the_uncentred_model_of_deviations(options):
    """Codes, loss and gradients have the same bits; the reconstruction is the mean away."""
    sae, x = model(**options), rows()
    plain, deviations = without_centring(sae), x - sae.activation_mean
    with torch.no_grad():
        codes, expected = sae.encode(x, position()), plain.encode(deviations, position())
        assert torch.equal(codes.values, expected.values)
        assert torch.equal(codes.indices, expected.indices)
        x_hat = plain(deviations, position()) + sae.activation_mean
        torch.testing.assert_close(sae(x, position()), x_hat, rtol=1e-6, atol=1e-5)
    given = (position(), LossOptions(K, paired=True, weights=LossWeights(1, 1, 1, 1), s_target=0.02))
    sae.train(), plain.train()
    terms, others = sae.loss(x, *given), plain.loss(deviations, *given)
    assert torch.equal(terms.total, others.total)
    terms.total.backward(), others.total.backward()
    for (name, p), q in zip(sae.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name


def test_folding_the_mean_into_the_biases_is_the_same_model():
    """b_enc - W_enc mean / scale and b_dec + mean / scale, in float64, where 300 costs no digits that matter."""
    sae, x = model(modulated=False).double(), rows().double()
    folded = without_centring(sae).double()
    with torch.no_grad():
        mean = sae.activation_mean / sae.activation_scale
        folded.b_enc -= sae.W_enc @ mean
        folded.b_dec += mean
        torch.testing.assert_close(folded(x), sae(x), rtol=1e-9, atol=1e-9)


def test_calibrate_takes_mean_and_deviation_from_all_rows_and_the_biases_from_the_first():
    sae, x, more = TIDE(TIDEConfig(D, N, K, centre=True)), rows(40), [rows(30, 1), rows(10, 2)]
    sae.calibrate(x, more=more)
    whole = torch.cat([x, *more]).double()
    mean = whole.mean(0)
    torch.testing.assert_close(sae.activation_mean, mean.float())
    torch.testing.assert_close(sae.activation_scale, (whole - mean).square().mean().sqrt().float())
    first = ((x - sae.activation_mean) / sae.activation_scale).mean(0)
    torch.testing.assert_close(sae.b_dec.detach(), first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae.W_enc @ first + sae.b_enc, torch.zeros(N), rtol=0, atol=1e-5)


def test_calibrate_takes_images_as_they_are_and_refuses_another_width():
    sae, images = TIDE(TIDEConfig(D, N, K, centre=True)), rows(40).view(4, 10, D)
    sae.calibrate(images)
    torch.testing.assert_close(sae.activation_mean, images.double().mean((0, 1)).float())
    for batches in ((images[..., 1:], []), (images, [images[..., 1:]])):
        with pytest.raises(TideError, match="activations have width 11 and this TIDE 12"):
            sae.calibrate(batches[0], more=batches[1])


@pytest.mark.parametrize("pre_norm", ["none", "layernorm"])
def test_undo_round_trip(pre_norm):
    """A dictionary of all directions, all of them active, gives activations back through the modulation, the mean in
    its place; through a LayerNorm it gives the normed rows, since only the modulation is undone."""
    sae = TIDE(TIDEConfig(D, 2 * D, 2 * D, modulation=MODULATION, pre_norm=pre_norm, undo=True, centre=True), seed=3)
    x = rows(30)
    sae.calibrate(x, position(30))
    with torch.no_grad():
        both = torch.cat([torch.eye(D), -torch.eye(D)])
        for parameter in (sae.W_enc, sae.W_dec):
            parameter.copy_(both)
        for bias in (sae.b_enc, sae.b_dec):
            bias.zero_()
        scale, _ = sae.modulation(TIMESTEP)
        assert (1 + scale).abs().min() > 0.05  # above the floor, so that undoing is exact
        inner = sae.normalised(x)
        if pre_norm == "layernorm":
            inner = torch.nn.functional.layer_norm(inner, (D,), eps=1e-6)
        expected = inner * sae.activation_scale + sae.activation_mean
        # Shift and factor cost a few roundings of normalised units; 300 leaves steps of 3e-5.
        torch.testing.assert_close(sae(x, position(30)), expected, rtol=1e-6, atol=1e-4)


# -- edits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_edit_that_changes_nothing_keeps_the_bits(dtype):
    sae, x = model(), rows().to(dtype)
    place = Place(500.0, token=None, image=torch.arange(len(x)))
    with torch.no_grad():
        assert torch.equal(edited_activations(sae, Scale(range(N), 1.0), x, place), x)


def test_the_mean_drops_out_of_an_edit():
    """x + decode(z') - decode(z), whatever the mean is."""
    sae, x = model(), rows()
    place = Place(500.0, token=None, image=torch.arange(len(x)))
    with torch.no_grad():
        z = sae.encode(x, 500.0).dense(N)
        changed = z.clone()
        changed[:, ::2] = 0
        expected = x + (changed - z) @ sae.W_dec * sae.activation_scale
        found = edited_activations(sae, Erase(range(0, N, 2)), x, place)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
        sae.activation_mean += 1.0  # other latents, the same difference
        z = sae.encode(x + 1, 500.0).dense(N)
        torch.testing.assert_close(edited_activations(sae, Erase(range(0, N, 2)), x + 1, place), found + 1)


# -- precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_activations_lose_nothing_by_the_mean(dtype):
    """300.7 is 300 or 302 in bfloat16, and deviations are of size 1: the mean is subtracted in float32."""
    sae, x = model(), rows().to(dtype)
    exact = (x.double() - sae.activation_mean.double()) / sae.activation_scale.double()
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(sae.normalised(x), exact.to(dtype), rtol=step, atol=1e-5)
    with torch.no_grad():
        assert sae(x, position()).dtype == dtype
        codes = sae.encode(x.float(), position())
        narrow = codes._replace(values=codes.values.to(dtype))
        # What is decoded is rounded once more where it is near 300; products are of narrow factors.
        wide, found = sae.decode(codes), sae.decode(narrow)
        others = torch.arange(D) != 3
        assert (found - wide)[:, others].abs().max() < 16 * step * (wide - sae.activation_mean).abs().max()
        torch.testing.assert_close(found[:, 3].float(), wide[:, 3], rtol=2 * step, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_of_16_bits_keeps_its_mean(dtype, tmp_path):
    sae = model()
    mean = sae.activation_mean.clone()
    assert not torch.equal(mean.to(dtype).float(), mean)
    assert sae.to(dtype).W_enc.dtype == dtype
    assert torch.equal(sae.activation_mean, mean)
    exact = ((rows().double() - mean.double()) / sae.activation_scale.double()).float()
    torch.testing.assert_close(sae.normalised(rows()), exact, rtol=1e-5, atol=1e-4)
    sae.save_pretrained(tmp_path)
    assert torch.equal(TIDE.from_pretrained(tmp_path).activation_mean, mean)
    assert sae.double().activation_mean.dtype == torch.float64
    assert sae.to("meta").activation_mean.is_meta


# -- checkpoints ----------------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_the_mean(tmp_path):
    sae, x = model(), rows()
    sae.save_pretrained(tmp_path)
    loaded = TIDE.from_pretrained(tmp_path)
    assert loaded.config.centre is True
    assert torch.equal(load_file(tmp_path / "model.safetensors")["activation_mean"], sae.activation_mean)
    with torch.no_grad():
        assert torch.equal(loaded(x, position()), sae.eval()(x, position()))


def test_without_centring_a_checkpoint_holds_what_it_always_held(tmp_path):
    sae = model(centre=False)
    sae.save_pretrained(tmp_path)
    assert "activation_mean" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_checkpoint_from_before_gives_the_same_bits(backend):
    """Written by the version before centring, on whole numbers, whose sums are exact in any order."""
    sae, expected = TIDE.from_pretrained(BEFORE, backend=backend), load_file(BEFORE / "expected.safetensors")
    assert sae.config.centre is False
    with torch.no_grad():
        codes = sae.encode(expected["x"], 500.0)
        assert torch.equal(codes.values, expected["values"])
        assert torch.equal(codes.indices, expected["indices"])
        assert torch.equal(sae(expected["x"], 500.0), expected["x_hat"])


# -- what it is for -------------------------------------------------------------------------------------------


def spiked(seed: int, n: int = 256, d: int = 32) -> ActivationBatch:
    """Three of 32 directions a row, deviations of size 1, and channel 5 at 300."""
    directions = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(7)))[0]
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n, d, generator=generator).topk(3).indices
    x = 3 * torch.einsum("nk,nkd->nd", 0.5 + torch.rand(n, 3, generator=generator), directions[active])
    x[:, 5] += 300
    nowhere = torch.zeros(n, dtype=torch.int32)
    return ActivationBatch(x, torch.zeros(1), nowhere, None, nowhere.long(), nowhere)


@pytest.mark.parametrize("centre", [True, False], ids=["centred", "as it was"])
def test_one_channel_of_large_mean(tmp_path, centre, recwarn):
    """Without centring the error looks like none and the other channels are lost, and a warning says so."""
    sae = TIDE(TIDEConfig(32, 128, 6, centre=centre))
    config = TrainConfig(
        modulation=False, centre=centre, steps=300, batch_tokens=256, lr=1e-2, log_every=300,
        loss=LossConfig(temporal=0.0), revival=RevivalConfig(after_tokens=5000, every=10),
    )  # fmt: skip
    trainer = Trainer(sae, config, tmp_path, progress=False)
    trainer.fit(spiked(i) for i in count())
    x, others = spiked(10**6, 2048).x, torch.arange(32) != 5
    with torch.no_grad():
        x_hat = sae(x)
        fired = float((sae.encode(x).dense(128) > 0).any(0).float().mean())
    explained = 1 - (x - x_hat)[:, others].square().sum() / (x - x.mean(0))[:, others].square().sum()
    said = [str(w.message) for w in recwarn if "channel" in str(w.message)]
    if centre:
        assert explained > 0.9
        assert fired > 0.8
        assert said == []
    else:
        assert trainer.history[-1]["mse"] < 1e-3
        assert explained < 0.3
        assert trainer.history[-1]["explained_variance"] == pytest.approx(float(explained), abs=0.1)
        assert fired < 0.2
        assert len(said) == 1
        assert said[0].startswith("channel 5 holds 100% of the energy (mean square) of the activations")


# -- what is refused ------------------------------------------------------------------------------------------


def constant_channel() -> torch.Tensor:
    x = rows()
    x[:, 0] = 7.0
    return x


@pytest.mark.parametrize("activation", ["topk", *ACTIVATIONS])
@pytest.mark.parametrize("centre", [True, False], ids=["centred", "not centred"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        pytest.param(torch.zeros(20, D), "are all 0, so there is nothing to learn", id="zeros"),
        pytest.param(rows() * 1e-30, "float32 holds the squares of 1e-19 to 2e[+]19", id="squares vanish"),
        pytest.param(rows() * 1e-15, None, id="small"),
        pytest.param(rows() * 1e15, None, id="large"),
        pytest.param(rows() * 1e20, "float32 holds the squares of 1e-19 to 2e[+]19", id="squares overflow"),
        pytest.param(rows() * 1e30, "float32 holds the squares of 1e-19 to 2e[+]19", id="squares overflow by far"),
        pytest.param(rows().double() * 1e200, "float32 holds the squares", id="beyond float32"),
        pytest.param(rows() / 0, "hold NaN or inf", id="inf"),
        pytest.param(rows() * math.nan, "hold NaN or inf", id="NaN"),
        pytest.param(rows(0), "or there are none", id="no rows"),
        pytest.param(constant_channel(), None, id="a constant channel"),
        pytest.param(torch.full((20, D), 1e6), "equal", id="rows that are all equal"),
        pytest.param(rows(1), "equal", id="one row"),
    ],
)
def test_first_activations(x, message, centre, activation):
    """A model that starts is finite and reconstructs finitely; what it cannot start from is one line."""
    sae = TIDE(TIDEConfig(D, N, K, centre=centre, activation=activation))
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    if message == "equal" and not centre:
        message = None
    if message is None:
        sae.calibrate(x)
        assert all(value.isfinite().all() for value in sae.state_dict().values())
        assert sae.activation_scale > 0
        with torch.no_grad():
            assert sae.eval()(x.float()).isfinite().all()
        return
    with pytest.raises(TideError, match=message) as caught:
        sae.calibrate(x)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_a_start_that_is_not_finite_is_refused():
    sae = model()
    with torch.no_grad():
        sae.modulation.linear.bias[0] = math.inf
    with pytest.raises(TideError, match=r"^b_(enc|dec) is not finite once it starts from the first activations"):
        sae.calibrate(rows(), 5.0)


# -- moments --------------------------------------------------------------------------------------------------


def test_moments_of_batches_are_those_of_all_rows():
    batches = [rows(n, n) for n in (1, 30, 0, 9000)]
    found, x = Moments.of(batches), torch.cat(batches).double()
    assert found.n == len(x)
    torch.testing.assert_close(found.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.variance, x.var(0, correction=0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.energy, x.square().mean(0), rtol=1e-12, atol=1e-12)
    assert Moments.of([]).n == Moments.of([rows(0)]).n == 0


def test_a_constant_channel_has_no_variance_at_all():
    assert not Moments.of([torch.full((9001, 3), 300.1), torch.full((7, 3), 300.1)]).variance.any()


@pytest.mark.parametrize(
    ("x", "centre", "message"),
    [
        pytest.param(rows(100), False, "channel 3 holds 99% of the energy", id="a mean rules"),
        pytest.param(rows(100), True, None, id="a mean that is subtracted"),
        pytest.param(rows(100) * (torch.arange(D) == 2), True, "channel 2 holds 100% of the variance", id="a variance"),
        pytest.param(rows(100) * (torch.arange(D) == 2), False, "channel 2 holds 100% of the variance", id="both"),
        pytest.param(rows(100) + 300, False, "the channels' means hold 100% of the energy", id="several means"),
        pytest.param(rows(100) + 300, True, None, id="several means that are subtracted"),
        pytest.param(
            rows(100)[:, 4:] / 20 + torch.randn(100, 8, generator=torch.Generator().manual_seed(1)),
            False,
            None,
            id="means of a fifth of the energy",
        ),
        pytest.param(rows(100)[:, :2], False, None, id="of two channels one always does"),
        pytest.param(torch.zeros(5, D), False, None, id="zeros"),
    ],
)
def test_a_channel_that_rules_is_named(x, centre, message):
    found = Moments.of([x]).warning(centre=centre)
    assert (found is None) if message is None else found.startswith(message)

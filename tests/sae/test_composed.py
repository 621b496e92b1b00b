"""The composed loss: equal to the fused one where both serve, and differentiable where only it does."""

from __future__ import annotations

import pytest
import torch

from tide.sae import TIDE, ModulationConfig, Position, TIDEConfig
from tide.sae.activation import ACTIVATIONS
from tide.sae.composed import composed_loss
from tide_kernels import LossOptions, LossWeights

D, N, K = 8, 24, 4
MODULATION = ModulationConfig(d_model=D, d_embedding=6, n_frequencies=4)
WEIGHTS = LossWeights(mse=1.0, cosine=0.7, temporal=0.2, sparsity=0.5)
TIMESTEP = torch.tensor([40.0, 900.0])
GROUP = torch.arange(10, dtype=torch.int32) % 2


def rows(n: int = 10, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def model(activation: str = "topk", **options) -> TIDE:
    """In float64, calibrated, every parameter moved off its initial value."""
    config = TIDEConfig(D, N, K, modulation=MODULATION, activation=activation, **options)
    sae = TIDE(config, backend="reference", seed=1)
    sae.calibrate(rows(400, 9), Position(TIMESTEP, group=torch.arange(400, dtype=torch.int32) % 2))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae.double()


TIMED = [f"{name} that knows the timestep" for name in ("batch_topk", "jumprelu")]
FUSED = ["topk", "batch_topk", "jumprelu", *TIMED]
OPTIONS = LossOptions(K, paired=True, weights=WEIGHTS, s_target=0.02, delta=0.01)


def loss(sae: TIDE, x: torch.Tensor, *, dead: torch.Tensor | None = None, **options):
    return sae.loss(x, Position(TIMESTEP, group=GROUP), OPTIONS._replace(**options), dead=dead)


@pytest.mark.parametrize("pre_norm", ["none", "layernorm"])
@pytest.mark.parametrize("auxk", [0.0, 0.3])
@pytest.mark.parametrize("prefixes", [(), (3, 11)], ids=["", "prefixes"])
@pytest.mark.parametrize("activation", FUSED)
def test_is_the_fused_loss(activation, prefixes, pre_norm, auxk):
    """Terms and gradients, AuxK included."""
    activation, _, timed = activation.partition(" ")
    sae, x = model(activation, pre_norm=pre_norm, timestep_thresholds=bool(timed)).eval(), rows().double()
    assert sae.fused
    dead = torch.arange(N) % 3 == 0 if auxk else None
    options = OPTIONS._replace(weights=WEIGHTS._replace(auxk=auxk), k_aux=3 if auxk else 0, prefixes=prefixes)
    fused = sae.loss(x, Position(TIMESTEP, group=GROUP), options, dead=dead)
    fused.total.backward()
    gradients = {name: p.grad.clone() for name, p in sae.named_parameters()}
    sae.zero_grad()
    composed = composed_loss(sae, *sae._entering(x, Position(TIMESTEP, group=GROUP)), options, dead)
    composed.total.backward()
    for name in ("total", "mse", "cosine", "temporal", "sparsity", "auxk", "whole", "fired"):
        torch.testing.assert_close(getattr(composed, name), getattr(fused, name), msg=lambda m, n=name: f"{n}: {m}")
    for name, p in sae.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def numeric(sae: TIDE, parameter: torch.Tensor, place: int, total, step: float = 1e-6) -> float:
    with torch.no_grad():
        flat = parameter.view(-1)
        flat[place] += step
        above = float(total())
        flat[place] -= 2 * step
        below = float(total())
        flat[place] += step
    return (above - below) / (2 * step)


@pytest.mark.parametrize(
    ("activation", "undo", "left_out"),
    [
        ("topk", True, ()),
        ("relu", False, ()),
        ("relu", True, ()),
        ("batch_topk", False, ()),
        # Straight-through estimators are no derivatives, so what they reach is tested for itself.
        ("jumprelu", False, ("activation.slow_log_threshold",)),
    ],
)
def test_gradients_are_derivatives(activation, undo, left_out):
    sae, x = model(activation, undo=undo), rows().double()
    sae.eval()  # BatchTopK's moving average would move between the two sides of a difference
    loss(sae, x).total.backward()
    for name, parameter in sae.named_parameters():
        if name in left_out:
            continue
        steepest = int(parameter.grad.abs().argmax())
        for place in {steepest, 0, parameter.numel() - 1}:
            expected = numeric(sae, parameter, place, lambda: loss(sae, x).total)
            assert float(parameter.grad.view(-1)[place]) == pytest.approx(expected, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_prefixes_where_the_loss_is_composed(activation):
    """The mean over the reconstructions by the first latents of the code and by all."""
    sae, x = model(activation, undo=True).eval(), rows().double()
    position = Position(TIMESTEP, group=GROUP)
    terms = loss(sae, x, prefixes=(3, 11))
    rebuilt = [sae.decode(sae.encode(x, position, prefix=m), position) for m in (3, 11, N)]
    errors = [float((each - x).square().mean() / sae.activation_scale.square()) for each in rebuilt]
    assert float(terms.mse) == pytest.approx(sum(errors) / 3)
    assert float(terms.whole) == pytest.approx(errors[-1])
    cosines = [float((1 - torch.nn.functional.cosine_similarity(each, x)).mean()) for each in rebuilt]
    assert float(terms.cosine) == pytest.approx(sum(cosines) / 3)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "topk"])
def test_undo_reaches_every_parameter(activation):
    sae, x = model(activation, undo=True), rows().double()
    loss(sae, x, weights=WEIGHTS._replace(auxk=0.1), dead=torch.arange(N) % 2 == 0, k_aux=2).total.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and p.grad.any() for p in sae.parameters())


def test_undo_learns(tmp_path):
    """A few steps of the trainer lower the loss of a model that undoes its modulation."""
    from tests.helpers.sparse_batches import batches
    from tide.training import TrainConfig, Trainer

    sae = TIDE(TIDEConfig(D, N, K, modulation=MODULATION, undo=True))
    config = TrainConfig(steps=60, batch_tokens=32, lr=1e-2, log_every=10, undo=True)
    job = Trainer(sae, config, tmp_path, progress=False)
    job.fit(batches(D, 32))
    assert job.history[-1]["mse"] < 0.7 * job.history[0]["mse"]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "topk"])
def test_under_bf16_autocast_the_terms_stay_float32(activation):
    sae, x = model(activation, undo=True).float(), rows()
    exact = loss(sae, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(sae, x)
    assert found.mse.dtype == torch.float32
    assert float(found.mse) == pytest.approx(float(exact.mse), rel=0.1)


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "topk"])
def test_no_rows(activation):
    sae = model(activation, undo=True)
    terms = sae.loss(torch.zeros(0, D).double(), 5.0, LossOptions(K, paired=True, weights=WEIGHTS))
    assert float(terms.mse) == 0
    assert len(sae.encode(torch.zeros(0, D).double(), 5.0).values) == 0

"""The activation functions beside TopK: what fires, what it costs, what it passes back, and on disk."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from tests.helpers.sparse_batches import batches
from tide.errors import TideError
from tide.sae import TIDE, ModulationConfig, TIDEConfig
from tide.sae.activation import ACTIVATIONS, BatchTopK, Firing, Gated, JumpReLU, ReLU
from tide.sae.activation.jumprelu import SPEED
from tide.sae.modulation import ScaleShift
from tide.sae.revival import Revival
from tide.training import LossConfig, ProgressiveK, RevivalConfig, TrainConfig, Trainer

D, N, K = 12, 40, 5
MODULATION = ModulationConfig(d_model=D, d_embedding=16, n_frequencies=8)


def rows(n: int = 30, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def model(activation: str, **options) -> TIDE:
    sae = TIDE(TIDEConfig(D, N, K, modulation=MODULATION, activation=activation, **options), seed=1)
    sae.calibrate(rows(500, 7), 300.0)
    return sae


def firing(pre: torch.Tensor, z: torch.Tensor, **options) -> Firing:
    return Firing(**{"pre": pre, "z": z, "W_dec": torch.ones(pre.shape[1], 4), "k": 2, "s_target": 0.1, "delta": 1.0,
                     **options})  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_has_the_interface_of_tide(activation):
    sae, x = model(activation), rows(6).view(2, 3, D)
    timestep = torch.tensor([100.0, 700.0])
    codes = sae.encode(x, timestep)
    assert codes.indices.dtype == torch.int32
    assert codes.values.shape == codes.indices.shape
    z = codes.dense(N)
    assert (z >= 0).all()
    assert codes.values.shape[1] == max(1, int((z > 0).sum(1).max()))
    assert (codes.indices[:, :-1] < codes.indices[:, 1:])[codes.indices[:, 1:] >= 0].all()
    x_hat = sae(x, timestep)
    assert x_hat.shape == x.shape
    torch.testing.assert_close(
        x_hat.view(-1, D), sae.decode_dense(z) + sae.activation_scale * sae.b_dec, rtol=1e-4, atol=1e-5
    )
    with pytest.raises(TideError, match=f"k cannot be set for one call of a {activation} autoencoder"):
        sae.encode(x, timestep, k=3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tokens_do_not_depend_on_their_batch(activation):
    sae, x = model(activation), rows()
    for seed in range(3):
        sae.loss(rows(seed=seed), 300.0)  # BatchTopK learns its threshold
    with torch.no_grad():
        torch.testing.assert_close(sae(x, 300.0)[:4], sae(x[:4], 300.0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_round_trip(tmp_path, activation):
    sae = model(activation, bandwidth=0.3)
    sae.loss(rows(), 300.0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.01)
    sae.save_pretrained(tmp_path)
    loaded = TIDE.from_pretrained(tmp_path)
    assert loaded.config == sae.config
    for name, value in sae.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    with torch.no_grad():
        torch.testing.assert_close(loaded(rows(), 300.0), sae(rows(), 300.0), rtol=0, atol=0)


def test_relu_and_its_penalty():
    pre = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    z = ReLU(3)(pre, None)
    assert z.tolist() == [[1.0, 0.0, 0.5], [0.0, 3.0, 0.0]]
    # Rows of W_dec have norms 2, 2 and 4, and d = 4: (1 * 2 + 0.5 * 4) / 4 and (3 * 2) / 4 in the mean.
    W_dec = torch.tensor([[1.0] * 4, [1.0] * 4, [2.0] * 4])
    assert float(ReLU(3).penalty(firing(pre, z, W_dec=W_dec))) == pytest.approx((1.0 + 1.5) / 2)


def test_batch_topk_keeps_k_a_token_on_average():
    pre = torch.tensor([[5.0, 4.0, 3.0, -9.0], [1.0, 0.5, -1.0, 0.2]])
    rule = BatchTopK(4)
    assert rule.training_latents(pre, None, 2).tolist() == [[5.0, 4.0, 3.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert float(rule.threshold) == 1.0
    # Of fewer positives than places all stay, and the threshold is left alone.
    few = -pre.abs()
    few[0, 0] = 2.0
    assert rule.training_latents(few, None, 2).sum() == 2.0
    assert float(rule.threshold) == 1.0


def test_batch_topk_threshold_is_a_moving_average_in_training_alone():
    rule = BatchTopK(2)
    for value in (2.0, 4.0):
        rule.training_latents(torch.tensor([[value, 9.0]]), None, 2)
    assert float(rule.threshold) == pytest.approx(2.0 + 0.01 * 2.0)
    rule.eval()
    rule.training_latents(torch.tensor([[8.0, 9.0]]), None, 2)
    assert float(rule.threshold) == pytest.approx(2.02)
    assert rule(torch.tensor([[2.0, 2.1]]), None).tolist() == [[0.0, pytest.approx(2.1)]]


def test_jumprelu_and_its_straight_through_gradients():
    """Both pseudo-derivatives against the formulas, on the three places of a pre-activation."""
    width, theta = 0.5, 1.0
    rule = JumpReLU(3, width).double()
    with torch.no_grad():
        rule.slow_log_threshold.fill_(math.log(theta) / SPEED)
    # Below, just below and just above the threshold of each latent.
    pre = torch.tensor([[0.2, 0.9, 1.1]], dtype=torch.float64, requires_grad=True)
    z = rule(pre, None)
    assert z.tolist() == [[0.0, 0.0, 1.1]]
    z.backward(torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64))
    assert pre.grad.tolist() == [[0.0, 0.0, 5.0]]
    near = torch.tensor([0.0, 1 / width, 1 / width], dtype=torch.float64)
    # d theta / d parameter = SPEED theta.
    expected = -SPEED * theta * theta * near * torch.tensor([2.0, 3.0, 5.0])
    torch.testing.assert_close(rule.slow_log_threshold.grad, expected)
    rule.slow_log_threshold.grad = None
    pre.grad = None
    rule.active(pre).sum().backward()
    assert pre.grad is None
    torch.testing.assert_close(rule.slow_log_threshold.grad, -SPEED * theta * near)


def test_jumprelu_penalty_is_zero_at_k():
    rule = JumpReLU(4)
    with torch.no_grad():
        rule.slow_log_threshold.zero_()
    pre = torch.tensor([[2.0, 2.0, 0.5, 0.0], [3.0, 1.5, 0.2, 0.1]])
    assert rule.penalty(firing(pre, pre, k=2)).item() == 0.0
    assert rule.penalty(firing(pre, pre, k=1)).item() == 1.0


def test_jumprelu_starts_with_k_latents_a_token():
    sae = model("jumprelu")
    assert float((sae.encode(rows(500, 7), 300.0).values > 0).sum(1).float().mean()) == pytest.approx(K, rel=0.02)


def test_gated_is_its_definition():
    """The two affine maps of the paper, their weights shared."""
    sae, x = model("gated"), rows()
    rule = sae.activation
    with torch.no_grad():
        rule.r_mag.normal_(std=0.3)
        rule.b_mag.normal_(std=0.3)
        directions = (x / sae.activation_scale * (1 + sae.modulation(torch.tensor([5.0]))[0])
                      + sae.modulation(torch.tensor([5.0]))[1]) @ sae.W_enc.T  # fmt: skip
        gate = (directions + sae.b_enc) > 0
        expected = gate * (rule.r_mag.exp() * directions + rule.b_mag).relu()
        torch.testing.assert_close(sae.encode(x, 5.0).dense(N), expected, rtol=1e-4, atol=1e-5)


def test_gated_gradients_go_where_the_paper_sends_them():
    """The gate's bias learns from penalty and auxiliary reconstruction alone, the decoder from neither."""
    from tide_kernels import LossOptions, LossWeights

    sae, x = model("gated"), rows()
    sae.activation.train()
    sae.loss(x, 5.0, LossOptions(K, weights=LossWeights(mse=0.0, cosine=1.0, sparsity=0.0))).total.backward()
    # Zero but for rounding: the bias is added to the gate and taken off the magnitude again.
    assert float(sae.b_enc.grad.abs().max()) < 1e-6
    assert sae.activation.b_mag.grad.any()
    second = Gated(N).auxiliary_latents(sae.pre_activations(x, sae.modulation_of(len(x), 5.0)))
    sae.zero_grad()
    sae.reconstruct_dense(second, sae.modulation_of(len(x), 5.0), frozen=True).sum().backward()
    assert sae.W_dec.grad is None or not sae.W_dec.grad.any()
    assert sae.b_enc.grad.any()


@pytest.mark.parametrize("activation", ["jumprelu", "gated"])
def test_revival_restarts_own_parameters(activation):
    sae = model(activation)
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2)
    sae.loss(rows(), 300.0).total.backward()
    optimizer.step()
    revival = Revival(N, after_tokens=10)
    revival.silent_for[[3, 9]] = 10
    before = {name: value.clone() for name, value in sae.activation.state_dict().items()}
    revival.revive(sae, optimizer, rows(64), torch.zeros(64, D), torch.Generator().manual_seed(0))
    fresh = {"slow_log_threshold": math.log(0.3) / SPEED, "r_mag": 0.0, "b_mag": 0.0}
    for name, value in sae.activation.state_dict().items():
        assert value[[3, 9]].tolist() == pytest.approx([fresh[name]] * 2)
        assert torch.equal(value[10:], before[name][10:])
    for parameter in sae.activation.parameters():
        assert not optimizer.state[parameter]["exp_avg"][[3, 9]].any()


@pytest.mark.parametrize(
    ("activation", "weight"), [("relu", 1.0), ("batch_topk", 0.0), ("jumprelu", 1.0), ("gated", 2.0)]
)
def test_learns_a_sparse_dictionary(tmp_path, activation, weight):
    """Two directions a row: the error falls, and few latents stay active."""
    sae = TIDE(TIDEConfig(D, 24, 3, activation=activation))
    config = TrainConfig(
        modulation=False, activation=activation, steps=250, batch_tokens=64, lr=1e-2, log_every=50,
        loss=LossConfig(sparsity=weight, temporal=0.0), progressive_k=ProgressiveK(shape="off"),
        revival=RevivalConfig(after_tokens=2000, every=10),
    )  # fmt: skip
    job = Trainer(sae, config, tmp_path, progress=False)
    job.fit(batches(D, 64))
    x = next(batches(D, 512)).x
    with torch.no_grad():
        explained = 1 - (sae(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    assert float(explained) > 0.6
    assert float((sae.encode(x).values > 0).sum(1).float().mean()) < 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "activation = 'gelu' is unknown; use one of topk, batch_topk, gated, jumprelu, relu"),
        ({"bandwidth": 0.0}, "bandwidth = 0.0 must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(TideError, match=message):
        TIDEConfig(D, N, K, **options)


def test_an_older_checkpoint_is_topk(tmp_path):
    import json

    sae = TIDE(TIDEConfig(D, N, K))
    sae.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["activation"], config["bandwidth"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert TIDE.from_pretrained(tmp_path).config.activation == "topk"


def test_build_model_takes_activation_and_undo_from_the_configuration(alpha):
    from tide.adapters import adapter_for
    from tide.training import build_model

    adapter = adapter_for(alpha)
    config = TrainConfig(n_latents=16, k=4, activation="jumprelu", bandwidth=0.7, undo=True)
    made = build_model(adapter, 6, config).config
    assert (made.activation, made.bandwidth, made.undo) == ("jumprelu", 0.7, True)
    # Without modulation there is nothing to undo.
    assert build_model(adapter, 6, TrainConfig(n_latents=16, k=4, modulation=False, undo=True)).config.undo is False


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_penalty_is_the_same_for_any_number_of_threads(activation):
    pre = torch.randn(4000, 50, generator=torch.Generator().manual_seed(3))
    rule, before, found = activation(50), torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 5):
            torch.set_num_threads(number)
            z = rule.training_latents(pre, None, 5)
            found.append(float(rule.penalty(firing(pre, z, W_dec=torch.ones(50, 4) / 3, k=5)).detach()))
    finally:
        torch.set_num_threads(before)
    assert len(set(found)) == 1


TRAINING = """
import hashlib, sys
import torch
from tide.sae import TIDE, TIDEConfig
from tide_kernels import LossOptions

torch.set_num_threads(2)
sae = TIDE(TIDEConfig(33, 77, 5, activation=sys.argv[1]))
x = torch.randn(5, 900, 33, generator=torch.Generator().manual_seed(1))
sae.calibrate(x[0])
optimiser = torch.optim.Adam(sae.parameters(), lr=1e-2)
for rows in x:
    optimiser.zero_grad()
    sae.loss(rows, None, LossOptions(5, paired=True)).total.backward()
    optimiser.step()
for name, value in sae.state_dict().items():
    print(name, hashlib.sha256(value.numpy().tobytes()).hexdigest())
"""


def test_training_gives_the_same_bits_with_the_same_number_of_threads():
    command = [sys.executable, "-c", TRAINING, "batch_topk"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert "activation.threshold" in first
    assert first == second


@pytest.mark.parametrize("activation", ["batch_topk", "jumprelu"])
def test_codes_grow_with_the_longest_row(activation):
    """A row of which more is active than the codes have places for is encoded with room for all of it."""
    sae = TIDE(TIDEConfig(D, N, 1, activation=activation))
    with torch.no_grad():
        sae.b_enc.fill_(5.0)
        sae.b_enc[0] = -5.0
    x = torch.zeros(3, D)
    codes = sae.encode(x)
    assert codes.indices.tolist() == [list(range(1, N))] * 3
    with torch.no_grad():
        sae.b_enc[3:] = -5.0
    assert sae.encode(x).indices.tolist() == [[1, 2]] * 3


def test_the_fused_loss_moves_the_stored_threshold_in_training_alone():
    sae = TIDE(TIDEConfig(D, N, 2, activation="batch_topk"))
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(0))
    sae.eval().loss(x)
    assert sae.activation.threshold == 0
    sae.train().loss(x)
    kept = sae.pre_activations(x, ScaleShift()).flatten().topk(18).values
    torch.testing.assert_close(sae.activation.threshold, kept[-1].detach())
    assert sae.eval().dense(x).count_nonzero() == 17  # what equals the threshold is out

"""The TIDE module against the operations it is made of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tide.errors import TideError
from tide.sae import TIDE, Codes, Modulation, ModulationConfig, Position, TIDEConfig, inference
from tide.world import World
from tide_kernels import LossOptions, LossWeights, decode, encode_topk, modulate, tide_loss

D, N, K = 12, 40, 5
MODULATION = ModulationConfig(d_model=D, d_embedding=16, n_frequencies=8)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))


def model(*, modulated: bool = True, seed: int = 0, **options) -> TIDE:
    """A TIDE whose parameters all differ from their initial zeros and ones."""
    config = TIDEConfig(D, N, K, modulation=MODULATION if modulated else None, **options)
    made = TIDE(config, seed=seed)
    generator = torch.Generator().manual_seed(100 + seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        made.activation_scale.fill_(3.0)
    return made


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 1), (2, 2, 3)], ids=["[N]", "[B, T]", "one row", "[A, B, T]"])
def test_shapes(shape):
    sae, x = model(), rows(*shape)
    n_rows = x[..., 0].numel()
    codes = sae.encode(x, 500.0)
    assert codes.values.shape == codes.indices.shape == (n_rows, K)
    assert codes.indices.dtype == torch.int32
    assert codes.dense(N).shape == (n_rows, N)
    assert sae.decode(codes).shape == (n_rows, D)
    assert sae(x, 500.0).shape == x.shape


def test_dense_places_the_values_and_leaves_unused_places_out():
    codes = Codes(
        torch.tensor([[2.0, 3.0, 0.0], [0.0, 0.0, 0.0], [1.0, 4.0, 5.0]]),
        torch.tensor([[0, 2, -1], [-1, -1, -1], [1, 2, 3]], dtype=torch.int32),
    )
    expected = [[2.0, 0, 3, 0], [0, 0, 0, 0], [0, 1, 4, 5]]
    assert codes.dense(4).tolist() == expected


def test_a_prefix_leaves_the_places_of_later_latents_unused():
    codes = Codes(torch.tensor([[2.0, 3.0], [4.0, 0.0]]), torch.tensor([[0, 2], [1, -1]], dtype=torch.int32))
    found = codes.prefix(2)
    assert found.values.tolist() == [[2.0, 0.0], [4.0, 0.0]]
    assert found.indices.tolist() == [[0, -1], [1, -1]]


def test_columns_are_those_of_dense():
    codes = Codes(
        torch.tensor([[2.0, 3.0, 0.0], [0.0, 0.0, 0.0], [1.0, 4.0, 5.0]]),
        torch.tensor([[0, 2, -1], [-1, -1, -1], [1, 2, 3]], dtype=torch.int32),
    )
    for latents in ([3, 0], [2], [], [1, 1]):
        assert torch.equal(codes.columns(torch.tensor(latents, dtype=torch.int64)), codes.dense(4)[:, latents])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulated": False},
        {"activation": "jumprelu"},
        {"activation": "jumprelu", "timestep_thresholds": True, "pre_norm": "layernorm"},
        {"activation": "batch_topk", "encoder_bias": False},
        {"activation": "batch_topk", "timestep_thresholds": True},
        {"activation": "relu"},
        {"activation": "relu", "match_l0": True},
        {"activation": "gated", "match_l0": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())) or "topk",
)
def test_some_latents_are_columns_of_all(options):
    """Rows of three images, each with its timestep."""
    sae, x = model(**options).eval(), rows(3, 8)
    at, features = torch.tensor([900.0, 500.0, 20.0]), torch.tensor([7, 0, 39, 12, 20])
    if sae.activation is not None and options["activation"] in ("relu", "batch_topk") and sae.activation.matched:
        sae.activation.set_cut(0.05)
    with torch.no_grad():
        expected = sae.encode(x, at).dense(N)[:, features]
        found = sae.latents_of(x, at, features)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_latents_that_are_not_there(activation):
    for feature in (-1, N):
        with pytest.raises(TideError, match=r"^latents \[3, .*\] are not all there; this SAE has 0\.\.39$"):
            model(activation=activation).latents_of(rows(2), 500.0, torch.tensor([3, feature]))


NESTED = [
    {"activation": "jumprelu"},
    {"activation": "jumprelu", "timestep_thresholds": True},
    {"activation": "batch_topk", "timestep_thresholds": True},
    {"activation": "relu"},
    {"activation": "gated", "match_l0": True},
]


@pytest.mark.parametrize("options", NESTED, ids=lambda options: " ".join(map(str, options.values())))
def test_a_nested_model_is_the_prefix_of_the_whole(options):
    """The same latents with the same values, and so the same reconstructions; prefixes below it stay."""
    sae = model(prefixes=(4, 10, 20), **options).eval()
    small, x = sae.nested(10), rows(30)
    assert (small.n_latents, small.config.prefixes, small.training) == (10, (4,), False)
    with torch.no_grad():
        prefix = sae.encode(x, 500.0, prefix=10)
        assert 0 < (prefix.values != 0).sum() < (sae.encode(x, 500.0).values != 0).sum()
        # A product of fewer columns may add up in another order.
        torch.testing.assert_close(small.encode(x, 500.0).dense(10), prefix.dense(10), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(small(x, 500.0), sae.decode(prefix, 500.0), rtol=1e-5, atol=1e-5)


def test_a_nested_topk_picks_k_of_its_own_latents():
    sae, x = model(prefixes=(10,)), rows(30)
    with torch.no_grad():
        code, prefix = sae.nested(10).encode(x, 500.0), sae.encode(x, 500.0, prefix=10)
        expected = encode_topk(x / 3, *_encoder(sae, 10), K, **_tables(sae, 500.0))
    assert torch.equal(code.indices, expected[1])
    assert (prefix.indices >= 0).sum() < (code.indices >= 0).sum()
    assert sae.nested(3).config.k == 3


def _encoder(sae: TIDE, n_latents: int) -> tuple[torch.Tensor, torch.Tensor]:
    return sae.W_enc[:n_latents], sae.b_enc[:n_latents]


def _tables(sae: TIDE, timestep: float) -> dict[str, torch.Tensor]:
    return dict(zip(("scale", "shift"), sae.modulation(torch.tensor([timestep])), strict=True))


def test_a_nested_model_is_a_checkpoint_with_memory_of_its_own(tmp_path):
    sae = model(centre=True, prefixes=(10,)).double()
    small = sae.nested(10)
    assert {value.dtype for value in small.state_dict().values()} == {torch.float64}
    small.save_pretrained(tmp_path)
    with torch.no_grad():
        small.W_dec.zero_()
    assert sae.W_dec.any()
    assert torch.equal(TIDE.from_pretrained(tmp_path).W_dec, sae.W_dec[:10])


@pytest.mark.parametrize("n_latents", [0, N + 1])
def test_only_so_many_latents_can_be_nested(n_latents):
    with pytest.raises(TideError, match=f"^{n_latents} latents cannot be the first of {N}; give 1 to {N}$"):
        model().nested(n_latents)


@pytest.mark.parametrize("prefixes", [(0,), (5, 5), (N,)])
def test_prefixes_of_a_config_ascend(prefixes):
    with pytest.raises(TideError, match=rf"must ascend from at least 1 to less than n_latents = {N}$"):
        TIDEConfig(D, N, K, prefixes=prefixes)


def test_is_the_composition_of_the_kernels():
    """Eqs 1, 2 and 8 in normalised units, the output back in activation units."""
    sae, x, group = model(), rows(7), torch.tensor([0, 1, 1, 0, 1, 0, 0], dtype=torch.int32)
    timestep = torch.tensor([50.0, 900.0])
    with torch.no_grad():
        scale, shift = sae.modulation(timestep)
        values, indices = encode_topk(x / 3, sae.W_enc, sae.b_enc, K, scale=scale, shift=shift, group=group)
        expected = 3 * decode(values, indices, sae.W_dec, sae.b_dec)
        codes = sae.encode(x, Position(timestep, group=group))
        torch.testing.assert_close(codes.values, values, rtol=0, atol=0)
        assert torch.equal(codes.indices, indices)
        torch.testing.assert_close(sae(x, Position(timestep, group=group)), expected, rtol=0, atol=0)


def test_groups_are_shared_evenly_where_none_are_given():
    sae, x, timestep = model(), rows(3, 4), torch.tensor([1.0, 500.0, 999.0])
    with torch.no_grad():
        found = sae(x, timestep)
        for image, t in enumerate(timestep.tolist()):
            torch.testing.assert_close(found[image], sae(x[image], t), rtol=1e-6, atol=1e-6)
        assert (found - sae(x, 1.0)).abs().max() > 1e-3
    with pytest.raises(TideError, match=r"^7 rows cannot be shared by 3 timesteps; pass Position\(.*group=...\)$"):
        sae.encode(rows(7), timestep)


def test_zero_scale_and_shift_are_the_plain_sae():
    tide, plain = model(), model(modulated=False)
    with torch.no_grad():
        tide.modulation.linear.weight.zero_()
        tide.modulation.linear.bias.zero_()
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(plain, name).copy_(getattr(tide, name))
        x = rows(2, 5)
        torch.testing.assert_close(tide(x, torch.tensor([3.0, 700.0])), plain(x), rtol=0, atol=0)
        # A plain SAE takes no notice of the timestep, so that the two can be exchanged.
        torch.testing.assert_close(plain(x, torch.tensor([3.0, 700.0])), plain(x), rtol=0, atol=0)


def test_encoder_starts_as_the_decoder_transposed():
    sae = TIDE(TIDEConfig(D, N, K))
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N))


def test_seed_sets_every_initial_weight_and_leaves_the_global_generator_alone():
    config = TIDEConfig(D, N, K, modulation=MODULATION)
    before = torch.get_rng_state()
    first, again, other = TIDE(config, seed=1), TIDE(config, seed=1), TIDE(config, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.W_enc, other.W_enc)
    assert not torch.equal(first.modulation.linear.weight, other.modulation.linear.weight)


@pytest.mark.parametrize("bias", ["encoder_bias", "decoder_bias"])
def test_without_a_bias(bias):
    sae = model(**{bias: False})
    assert (sae.b_enc is None) == (bias == "encoder_bias")
    assert (sae.b_dec is None) == (bias == "decoder_bias")
    sae.calibrate(rows(9), 5.0)
    assert torch.isfinite(sae(rows(9), 5.0)).all()


@pytest.mark.parametrize("factor", [1e-3, 1.0, 50.0])
def test_scale_of_the_activations_is_undone(factor):
    """Multiplying activations and activation_scale alike multiplies the reconstruction, and leaves the codes."""
    sae, x = model(), rows(8)
    with torch.no_grad():
        codes, x_hat = sae.encode(x, 7.0), sae(x, 7.0)
        sae.activation_scale.mul_(factor)
        scaled = sae.encode(factor * x, 7.0)
        torch.testing.assert_close(scaled.dense(N), codes.dense(N), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(sae(factor * x, 7.0), factor * x_hat, rtol=1e-4, atol=1e-4 * factor)


@pytest.mark.parametrize("pre_norm", ["none", "layernorm"])
@pytest.mark.parametrize("undo", [False, True])
def test_calibrate(pre_norm, undo):
    sae = model(pre_norm=pre_norm, undo=undo)
    x = 5 * rows(400) + torch.arange(D)
    timestep, group = torch.tensor([20.0, 800.0]), torch.arange(400, dtype=torch.int32) % 2
    sae.calibrate(x, Position(timestep, group=group))
    rms = x.double().square().mean().sqrt().float()
    torch.testing.assert_close(sae.activation_scale, rms)
    with torch.no_grad():
        scale, shift = sae.modulation(timestep)
        modulated = modulate(x / rms, scale, shift, group, layer_norm=pre_norm == "layernorm")
        decoded = modulated if undo else x / rms
        torch.testing.assert_close(sae.b_dec, decoded.mean(0), rtol=1e-4, atol=1e-5)
        # The mean modulated activation encodes to zero.
        mean = modulated.mean(0)
        torch.testing.assert_close(sae.W_enc @ mean + sae.b_enc, torch.zeros(N), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibrate_refuses(bad):
    x = rows(4)
    x[2, 3] = bad
    sae = TIDE(TIDEConfig(D, N, K))
    for batch in (x, rows(0)):
        with pytest.raises(TideError, match="the first activations hold NaN or inf, or there are none; collect"):
            sae.calibrate(batch)
    assert sae.activation_scale == 1


def test_undo_inverts_the_modulation_at_the_output():
    sae, x, timestep = model(undo=True), rows(2, 4), torch.tensor([5.0, 600.0])
    plain = model()
    plain.load_state_dict(sae.state_dict())
    with torch.no_grad():
        scale, shift = sae.modulation(timestep)
        assert (1 + scale).abs().min() > 0.05  # above the floor, so that undoing is exact
        expected = 3 * ((plain(x, timestep) / 3 - shift[:, None]) / (1 + scale[:, None]))
        torch.testing.assert_close(sae(x, timestep), expected, rtol=1e-4, atol=1e-5)


def test_undo_keeps_one_plus_scale_away_from_zero():
    sae, d = model(undo=True), D
    with torch.no_grad():
        sae.modulation.linear.weight.zero_()
        sae.modulation.linear.bias[:d] = -1 + torch.tensor([0.0, 6e-4, -6e-4] + [1.0] * (d - 3))
        sae.modulation.linear.bias[d:] = 0.0
        zero = Codes(torch.zeros(1, K), torch.full((1, K), -1, dtype=torch.int32))
        sae.b_dec.fill_(1.0)
        found = sae.decode(zero, 1.0)[0] / 3
    torch.testing.assert_close(found[:3], torch.tensor([20.0, 20.0, -20.0]))
    torch.testing.assert_close(found[3:], torch.ones(d - 3))


def test_undo_is_refused_where_it_would_be_ignored():
    with pytest.raises(TideError, match="use decode"):
        model(undo=True).decode_dense(torch.zeros(1, N))


def test_decode_dense_is_decode_without_the_bias():
    sae, codes = model(), None
    with torch.no_grad():
        codes = sae.encode(rows(6), 100.0)
        expected = sae.decode(codes) - 3 * sae.b_dec
        torch.testing.assert_close(sae.decode_dense(codes.dense(N)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", ["none", "layernorm"])
def test_loss_is_the_fused_loss_of_normalised_rows(pre_norm):
    sae, x, timestep = model(pre_norm=pre_norm), rows(8), torch.tensor([40.0, 900.0])
    group = torch.tensor([0, 1] * 4, dtype=torch.int32)
    weights = LossWeights(mse=1.0, cosine=0.5, temporal=0.1, sparsity=0.2)
    found = sae.loss(x, Position(timestep, group=group), LossOptions(3, paired=True, weights=weights, s_target=0.01))
    scale, shift = sae.modulation(timestep)
    expected = tide_loss(
        x / 3, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, 3,
        scale=scale, shift=shift, group=group, layer_norm=pre_norm == "layernorm",
        paired=True, weights=weights, s_target=0.01,
    )  # fmt: skip
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=0, atol=0)


def test_loss_agrees_with_a_naive_composition():
    """Each term from its definition, over the model's own codes and reconstruction."""
    sae, x = model(), rows(8)
    position = Position(torch.tensor([40.0, 900.0]), group=torch.tensor([0, 1] * 4, dtype=torch.int32))
    terms = sae.loss(
        x, position, LossOptions(K, paired=True, weights=LossWeights(1, 1, 1, 1), s_target=0.02, delta=0.01)
    )
    with torch.no_grad():
        z = sae.encode(x, position).dense(N)
        u, u_hat = x / 3, sae(x, position) / 3
        mse = (u - u_hat).square().mean()
        cosine = (1 - torch.cosine_similarity(u, u_hat)).mean()
        temporal = (z[0::2] - z[1::2]).square().sum(1).mean()
        gap = ((z.square() / (z.square() + 0.01)).sum(1) / N).mean() - 0.02
        sparsity = 0.01 * (gap.abs() - 0.005)
    assert gap.abs() > 0.01  # in Huber's linear part
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(terms.mse, mse, **close)
    torch.testing.assert_close(terms.cosine, cosine, **close)
    torch.testing.assert_close(terms.temporal, temporal, **close)
    torch.testing.assert_close(terms.sparsity, sparsity, **close)
    torch.testing.assert_close(terms.total.detach(), mse + cosine + temporal + sparsity, **close)
    assert torch.equal(terms.fired, (z > 0).sum(0))


def test_loss_reaches_every_parameter():
    sae = model()
    sae.loss(rows(30), 300.0).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in sae.parameters())


def test_regularisation():
    sae = model()
    expected = (sae.W_enc.double() ** 2).sum() + (sae.W_dec.double() ** 2).sum()
    torch.testing.assert_close(sae.regularisation().double(), expected, rtol=1e-5, atol=0)


def test_k_can_be_set_for_one_call():
    assert model().encode(rows(3), 1.0, k=2).values.shape == (3, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k = 0 must lie between 1 and n_latents = 40"),
        ({"k": 41}, "k = 41 must lie between 1 and n_latents = 40"),
        ({"d_model": 0}, "d_model = 0 must be positive"),
        ({"pre_norm": "batch"}, "pre_norm = 'batch' is unknown"),
        ({"undo": True}, "belong to the modulation"),
        ({"pre_norm": "layernorm"}, "belong to the modulation"),
        ({"d_model": 13, "modulation": MODULATION}, "the modulation has width 12 and the model 13"),
    ],
)
def test_config_refuses(options, message):
    with pytest.raises(TideError, match=message):
        TIDEConfig(**{"d_model": D, "n_latents": N, "k": K, **options})


def test_modulation_of_another_config_is_refused():
    other = Modulation(ModulationConfig(d_model=D, d_embedding=17, n_frequencies=8))
    for config in (TIDEConfig(D, N, K, modulation=MODULATION), TIDEConfig(D, N, K)):
        with pytest.raises(TideError, match="the modulation is not the config's"):
            TIDE(config, other)


def test_bad_input():
    sae = model()
    with pytest.raises(TideError, match=r"width 13 and this TIDE 12; use one trained on this block"):
        sae(torch.zeros(2, 13), 1.0)
    with pytest.raises(TideError, match="pass a timestep, or a Position"):
        sae(rows(2))


@pytest.mark.parametrize("training", [True, False])
def test_inference_restores_the_mode_also_after_an_error(training):
    sae = model().train(training)
    with inference(sae):
        assert not sae.training
        assert not torch.is_grad_enabled()
    with pytest.raises(RuntimeError), inference(sae):
        raise RuntimeError
    assert sae.training is training
    assert torch.is_grad_enabled()


# -- transcoders ------------------------------------------------------------------------------------------

TRANSCODER = {"tensor": "feed_forward_input", "target": "feed_forward"}


def calibrated(**options) -> tuple[TIDE, torch.Tensor, torch.Tensor]:
    """A transcoder that was calibrated on rows x and their targets y, and these."""
    x, y = rows(60), 5 * rows(60, seed=1) + 40
    sae = TIDE(TIDEConfig(D, N, K, modulation=MODULATION, **TRANSCODER, **options))
    sae.calibrate(x[:40], 500.0, more=[x[40:]], targets=[y[:40], y[40:]])
    return sae, x, y


@pytest.mark.parametrize("centre", [False, True])
def test_a_transcoder_has_two_units(centre):
    """Its output starts at the target's mean, in the target's units; its input has those of x."""
    sae, _, y = calibrated(centre=centre)
    deviation, mean = (y - y.mean(0)).square().mean().sqrt(), y.square().mean().sqrt()
    assert float(sae.target_scale) == pytest.approx(float(deviation if centre else mean))
    assert float(sae.activation_scale) == pytest.approx(1.0, rel=0.1)
    nothing = Codes(torch.zeros(1, 1), torch.full((1, 1), -1, dtype=torch.int32))
    torch.testing.assert_close(sae.decode(nothing).detach()[0], y[:40].mean(0), rtol=1e-5, atol=1e-4)
    one = torch.eye(N)[:1]
    with torch.no_grad():
        sae.W_dec[0] = torch.arange(D)
    torch.testing.assert_close(sae.decode_dense(one), sae.W_dec[:1] * sae.target_scale)
    assert sae.half().target_scale.dtype == torch.float16
    if centre:
        assert sae.target_mean.dtype == torch.float32


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "jumprelu", "relu", "gated"])
def test_a_transcoders_loss_is_of_its_target(activation):
    sae, x, y = calibrated(activation=activation)
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_enc)
    terms = sae.eval().loss(x, 500.0, LossOptions(K, weights=LossWeights(sparsity=0.0)), target=y)
    codes = sae.encode(x, 500.0)
    error = (sae.decode(codes, 500.0) - y).square().mean() / sae.target_scale.square()
    if activation != "batch_topk":  # whose batch decides in training
        assert float(terms.mse) == pytest.approx(float(error.detach()), rel=1e-4)
    terms.total.backward()
    assert sae.W_dec.grad.any()
    assert sae.W_enc.grad.any()


def test_a_transcoders_decoder_starts_at_zero():
    """Its encoder as an autoencoder's, whose decoder is the same directions."""
    sae, plain = TIDE(TIDEConfig(D, N, K, **TRANSCODER)), TIDE(TIDEConfig(D, N, K))
    assert not sae.W_dec.any()
    assert torch.equal(plain.W_dec, plain.W_enc)
    assert torch.equal(plain.W_enc, sae.W_enc)


def test_a_target_is_given_to_transcoders_alone():
    sae, x, y = calibrated()
    with pytest.raises(TideError, match=r"^this TIDE is a transcoder of feed_forward; pass the target as well$"):
        sae.loss(x, 500.0)
    with pytest.raises(TideError, match=r"^this TIDE reconstructs what it encodes; leave the target out$"):
        model().loss(x, 500.0, target=y)
    with pytest.raises(TideError, match="pass the target as well"):
        sae.calibrate(x, 500.0)


@pytest.mark.parametrize("centre", [False, True])
def test_a_transcoder_is_kept_with_its_units(tmp_path, centre):
    sae, x, _ = calibrated(centre=centre)
    sae.save_pretrained(tmp_path)
    again = TIDE.from_pretrained(tmp_path, tensor="feed_forward_input")
    assert again.config == sae.config
    with torch.no_grad():
        assert torch.equal(again(x, 500.0), sae(x, 500.0))
        small = sae.nested(10)
        assert torch.equal(small.target_scale, sae.target_scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "output"}, "^target 'output' is unknown; use one of attention, feed_forward$"),
        ({"target": "attention"}, "^a transcoder of attention reads attention_input, not output; set tensor to that$"),
        (
            {**TRANSCODER, "undo": True},
            "^undo inverts a modulation that a transcoder's target never had; leave it off$",
        ),
    ],
)
def test_bad_targets_of_a_config(options, message):
    with pytest.raises(TideError, match=message):
        TIDEConfig(D, N, K, modulation=MODULATION, **options)


@pytest.mark.parametrize("n_latents", [9, 4099, 2 * 4096 + 3], ids=["one draw", "more than a slice in one", "two"])
@pytest.mark.parametrize("count", [1, 3], ids="{} ranks".format)
def test_the_initial_weights_of_parts_are_those_of_the_whole(n_latents, count):
    """Drawn in slices, with the numbers of one draw; what is drawn after them is the same as well."""
    n_latents = n_latents // count * count
    config = TIDEConfig(D, n_latents, K, MODULATION, activation="jumprelu", timestep_thresholds=True)
    parts = [TIDE(config, seed=5, among=World(number, count)) for number in range(count)]
    drawn = torch.randn(n_latents, D, generator=torch.Generator().manual_seed(5))
    for name in ("W_enc", "W_dec"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), F.normalize(drawn, dim=1))
    whole = TIDE(config, seed=5).state_dict()
    for part in parts:
        for name, value in part.state_dict().items():
            if name in ("b_enc", "W_enc"):
                assert len(value) * count == n_latents
            if value.shape == whole[name].shape:
                assert torch.equal(value, whole[name]), name


def test_what_a_part_of_the_latents_cannot_do(tmp_path):
    part = TIDE(TIDEConfig(D, N, K), among=World(1, 2))
    for needs_all in (lambda: part.save_pretrained(tmp_path), lambda: part.nested(8), lambda: part.loss(rows(4))):
        with pytest.raises(TideError, match=r"^this rank holds 20 of 40 latents and all are needed; read the checkpoi"):
            needs_all()
    assert not list(tmp_path.iterdir())

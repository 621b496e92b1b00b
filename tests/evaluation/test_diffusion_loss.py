"""The diffusion loss (eq. 4) with something put into the model, against the loss computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import PixArtAlphaPipeline

from tide.activations import Prepared
from tide.activations.collect import sample_generator
from tide.adapters import adapter_for
from tide.errors import TideError
from tide.evaluation import diffusion_loss, recovered, sae_intervention, zero_ablation
from tide.evaluation.diffusion_loss import _figures
from tide.sae import TIDE, TIDEConfig

TIMESTEPS = torch.tensor([900, 100])


@pytest.fixture(scope="module")
def prepared(alpha) -> list[Prepared]:
    """Three images in batches of two and one."""
    latents = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    text = adapter_for(alpha).encode_prompts(["a red cube", "a tree", "a house, far"], 20)
    rows = (slice(0, 2), slice(2, 3))
    return [Prepared(latents[part], {name: value[part] for name, value in text.items()}) for part in rows]


def same(x, call):
    return x.clone()


def test_putting_the_activation_back_is_bit_equal_to_clean(alpha, prepared):
    losses = diffusion_loss(adapter_for(alpha), prepared, 6, {"same": same, "zero": zero_ablation}, timesteps=TIMESTEPS)
    assert list(losses) == ["clean", "same", "zero"]
    assert losses["same"] == losses["clean"]
    assert losses["zero"]["loss"] != losses["clean"]["loss"]


def test_a_transcoder_takes_the_place_of_its_module(alpha, prepared):
    """One that encodes nothing puts the same bias wherever the feed-forward's output was; without the input there is
    nothing to encode."""
    config = TIDEConfig(192, 32, 4, block=6, tensor="feed_forward_input", target="feed_forward")
    sae = TIDE(config)
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_dec.fill_(0.25)
        sae.target_scale.fill_(2.0)
    given = []

    def constant(x, call):
        given.append(call.inputs)
        return torch.full_like(x, 0.5)

    both = {"transcoder": sae_intervention(sae), "constant": constant}
    options = {"timesteps": TIMESTEPS, "tensor": "feed_forward"}
    losses = diffusion_loss(adapter_for(alpha), prepared, 6, both, inputs=True, **options)
    assert losses["transcoder"] == losses["constant"]
    assert losses["transcoder"]["loss"] != losses["clean"]["loss"]
    assert all(inputs.shape[1:] == (64, 192) for inputs in given)
    with pytest.raises(
        TideError, match=r"^a transcoder reads the module's input; measure its diffusion loss with inpu"
    ):
        diffusion_loss(adapter_for(alpha), prepared, 6, both, **options)


def test_batching_changes_rounding_only(alpha, prepared):
    whole = [
        Prepared(
            torch.cat([p.latents for p in prepared]),
            {name: torch.cat([p.text[name] for p in prepared]) for name in prepared[0].text},
        )
    ]
    losses = [diffusion_loss(adapter_for(alpha), data, 6, {}, timesteps=TIMESTEPS) for data in (prepared, whole)]
    assert losses[0]["clean"]["loss"] == pytest.approx(losses[1]["clean"]["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_is_the_mean_squared_error_of_the_noise(alpha, prepared, kind):
    """Every prediction converted to noise by the definition of its kind; each image's noise its own."""
    scheduler = type(alpha.scheduler).from_config(alpha.scheduler.config, prediction_type=kind)
    pipe = PixArtAlphaPipeline(**{**alpha.components, "scheduler": scheduler})
    losses = diffusion_loss(adapter_for(pipe), prepared, 6, {}, timesteps=TIMESTEPS, seed=5)
    expected: dict[int, list[float]] = {900: [], 100: []}
    for first, images in zip((0, 2), prepared, strict=True):
        for step, t in enumerate(TIMESTEPS.tolist()):
            generators = [sample_generator(5, first + i, step) for i in range(len(images.latents))]
            noise = torch.stack([torch.randn(4, 16, 16, generator=g) for g in generators])
            abar = scheduler.alphas_cumprod[t]
            noisy = abar.sqrt() * images.latents + (1 - abar).sqrt() * noise
            with torch.no_grad():
                found = pipe.transformer(
                    noisy,
                    timestep=torch.full((len(noisy),), t),
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                    **images.text,
                ).sample[:, :4]
            if kind == "v_prediction":
                found = abar.sqrt() * found + (1 - abar).sqrt() * noisy
            expected[t] += [float((found[i] - noise[i]).square().mean()) for i in range(len(noise))]
    for t, values in expected.items():
        assert losses["clean"]["timestep"][str(t)] == pytest.approx(sum(values) / 3, rel=1e-5)
    # Every image counts the same, whatever batch it was in.
    assert losses["clean"]["loss"] == pytest.approx(sum(map(sum, expected.values())) / 6, rel=1e-5)


def test_the_seed_sets_the_noise(alpha, prepared):
    first, again, other = (
        diffusion_loss(adapter_for(alpha), prepared, 6, {}, timesteps=TIMESTEPS, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_reconstruction_in_place(alpha, prepared):
    """A perfect autoencoder costs nothing; one that returns its mean alone costs something, and a block ablated all."""
    adapter = adapter_for(alpha)
    perfect = TIDE(TIDEConfig(192, 384, 192, block=6))
    with torch.no_grad():
        # x = relu(x) - relu(-x)
        perfect.W_enc.copy_(torch.cat([torch.eye(192), -torch.eye(192)]))
        perfect.W_dec.copy_(perfect.W_enc)
    nothing = TIDE(TIDEConfig(192, 384, 192, block=6))
    with torch.no_grad():
        nothing.b_enc.fill_(-1e6)
    changes = {"perfect": sae_intervention(perfect), "nothing": sae_intervention(nothing), "ablated": zero_ablation}
    losses = {
        name: value["loss"]
        for name, value in diffusion_loss(adapter, prepared, 6, changes, timesteps=TIMESTEPS).items()
    }
    assert losses["perfect"] == pytest.approx(losses["clean"], rel=1e-5)
    assert losses["nothing"] == losses["ablated"]  # b_dec is zero
    assert recovered(losses["clean"], losses["perfect"], losses["ablated"]) == pytest.approx(1, abs=1e-3)
    assert recovered(losses["clean"], losses["nothing"], losses["ablated"]) == 0


def test_another_tensor_of_the_block(alpha, prepared):
    adapter = adapter_for(alpha)
    losses = [
        diffusion_loss(adapter, prepared, 6, {"zero": zero_ablation}, timesteps=TIMESTEPS, tensor=tensor)
        for tensor in ("output", "attention", "feed_forward")
    ]
    assert len({each["zero"]["loss"] for each in losses}) == 3


@pytest.mark.parametrize(
    ("clean", "reconstructed", "ablated", "expected"),
    [
        (0.2, 0.2, 1.0, 1.0),
        (0.2, 1.0, 1.0, 0.0),
        (0.2, 0.4, 1.0, 0.75),
        (0.2, 1.4, 1.0, -0.5),
        (0.2, 0.199, 0.6, 1.0025),
    ],
    ids=["as clean", "as ablated", "between", "worse than ablated", "a hair better than clean"],
)
def test_recovered(clean, reconstructed, ablated, expected):
    assert recovered(clean, reconstructed, ablated) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("clean", "reconstructed", "ablated", "error"),
    [
        pytest.param(0.2, 0.3, 0.2, 0.0, id="the ablation costs nothing"),
        pytest.param(1.30, 1.27, 1.29, 0.0, id="it helps: 300 %"),
        pytest.param(1.30, 1.20, 1.305, 0.0, id="it costs next to nothing: 2100 %"),
        pytest.param(0.2, 0.25, 0.4, 0.11, id="it costs no more than chance makes"),
        pytest.param(1.30, 1.10, 1.45, 0.01, id="less loss than the clean model has: 233 %"),
        pytest.param(0.2, 0.25, 0.4, math.inf, id="a single image"),
        pytest.param(0.2, 0.25, math.inf, 0.0, id="an ablation without a loss"),
        pytest.param(0.0, 0.0, 0.0, 0.0, id="no loss at all"),
    ],
)
def test_a_share_that_would_say_nothing(clean, reconstructed, ablated, error):
    assert math.isnan(recovered(clean, reconstructed, ablated, error))


def test_the_error_is_of_paired_differences(alpha, prepared):
    """Over images at each timestep; against the losses of one image at a time. A single image has none."""
    adapter = adapter_for(alpha)
    losses = diffusion_loss(adapter, prepared, 6, {"zero": zero_ablation}, timesteps=TIMESTEPS)
    first = diffusion_loss(adapter, prepared[:1], 6, {"zero": zero_ablation}, timesteps=TIMESTEPS)
    third = {  # of three images the third is what the first two leave of the mean
        name: {t: 3 * losses[name]["timestep"][t] - 2 * first[name]["timestep"][t] for t in ("900", "100")}
        for name in ("clean", "zero")
    }
    assert losses["clean"]["error"] == 0
    for t in ("900", "100"):
        pair_mean = first["zero"]["timestep"][t] - first["clean"]["timestep"][t]
        # The standard error of two differences is half of their distance.
        half = first["zero"]["timestep_error"][t]
        added = torch.tensor([pair_mean - half, pair_mean + half, third["zero"][t] - third["clean"][t]])
        expected = float(added.std()) / math.sqrt(3)
        assert losses["zero"]["timestep_error"][t] == pytest.approx(expected, rel=1e-2)
    alone = diffusion_loss(adapter, [_first(prepared[0])], 6, {"zero": zero_ablation}, timesteps=TIMESTEPS)
    assert alone["zero"]["error"] == alone["zero"]["timestep_error"]["900"] == math.inf


def test_an_image_counts_once_in_the_error():
    """Whatever the number of its timesteps, which tell much the same of it."""
    clean = {900.0: [1.0, 1.0, 1.0], 100.0: [2.0, 2.0, 2.0]}
    zero = {900.0: [2.0, 3.0, 4.0], 100.0: [3.0, 4.0, 5.0]}  # 1, 2, 3 more at both
    found = _figures(zero, clean)
    assert found["error"] == pytest.approx(1 / math.sqrt(3))
    assert found["error"] == pytest.approx(found["timestep_error"]["900"])
    opposed = {900.0: [2.0, 3.0, 4.0], 100.0: [5.0, 4.0, 3.0]}  # 2 more in the mean of each
    assert _figures(opposed, clean)["error"] == 0
    assert _figures({900.0: [2.0], 100.0: [5.0]}, {900.0: [1.0], 100.0: [2.0]})["error"] == math.inf


def _first(images: Prepared) -> Prepared:
    return Prepared(images.latents[:1], {name: value[:1] for name, value in images.text.items()})


def broken(x, call):
    return x * math.nan


def test_a_loss_that_is_not_finite(alpha, prepared):
    """Of an intervention it is said as it is; of the untouched model it is an error."""
    adapter = adapter_for(alpha)
    losses = diffusion_loss(adapter, prepared, 6, {"broken": broken}, timesteps=TIMESTEPS)
    assert math.isnan(losses["broken"]["loss"])
    inputs = [Prepared(images.latents * math.nan, images.text) for images in prepared]
    with pytest.raises(TideError, match="of the untouched model is not finite at timestep 900; use a wider dtype"):
        diffusion_loss(adapter, inputs, 6, {}, timesteps=TIMESTEPS)


def test_bad_input(alpha, prepared):
    adapter = adapter_for(alpha)
    with pytest.raises(TideError, match="there are no images to measure the diffusion loss on"):
        diffusion_loss(adapter, [], 6, {}, timesteps=TIMESTEPS)
    with pytest.raises(TideError, match="an intervention is named 'clean'"):
        diffusion_loss(adapter, prepared, 6, {"clean": same}, timesteps=TIMESTEPS)
    with pytest.raises(TideError, match="timestep 1000 does not exist"):
        diffusion_loss(adapter, prepared, 6, {}, timesteps=torch.tensor([1000]))

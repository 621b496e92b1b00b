"""What the adapter says of PixArt, against the pipelines themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tests.helpers.adapters import own_modules
from tide.adapters import Adapter, adapter_for, register, tap
from tide.adapters.families.pixart import PixArtAdapter
from tide.errors import TideError

CALL = {
    "use_resolution_binning": False,
    "clean_caption": False,
    "output_type": "latent",
    "num_inference_steps": 3,
}


def calls_of(pipe, **kwargs):
    """The arguments of every call that a run of the pipeline makes to its transformer."""
    calls = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        pipe(**{**CALL, **kwargs})
    finally:
        handle.remove()
    return calls


def test_sizes(alpha):
    adapter = adapter_for(alpha)
    assert isinstance(adapter, PixArtAdapter)
    assert (adapter.family, adapter.n_blocks, adapter.d_model) == ("pixart", 8, 192)
    assert adapter.token_grid(16, 16) == (8, 8)
    assert adapter.token_grid(16, 8) == (8, 4)
    assert adapter.latent_channels == 4


@pytest.mark.parametrize(("block", "index"), [(0, 0), (7, 7), (-1, 7), (-8, 0), ("penultimate", 6)])
def test_resolve_block(alpha, block, index):
    assert adapter_for(alpha).resolve_block(block) == index


@pytest.mark.parametrize("block", [8, 12, -9, "last", 1.5])
def test_resolve_block_refuses(alpha, block):
    with pytest.raises(TideError, match=rf"^block {block} does not exist; this transformer has blocks 0\.\.7$"):
        adapter_for(alpha).resolve_block(block)


def test_all_blocks_and_repeated_ones(adapter):
    assert adapter.resolve_blocks(["all"]) == list(range(8))
    assert adapter.resolve_blocks([-1, 3, "penultimate", 7]) == [7, 3, 6]


def test_timestep_by_keyword_and_by_position(alpha):
    adapter = adapter_for(alpha)
    hidden = torch.zeros(3, 4, 16, 16)
    expected = torch.full((3,), 951.0)
    for args, kwargs in [
        ((hidden,), {"timestep": torch.tensor([951])}),
        ((hidden, None, torch.tensor(951)), {}),
        ((), {"hidden_states": hidden, "timestep": torch.tensor([951, 951, 951])}),
        ((hidden,), {"timestep": 951}),
    ]:
        found = adapter.timestep_of(args, kwargs)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(TideError, match="without a timestep"):
        adapter.timestep_of((hidden,), {})


@pytest.mark.parametrize("name", ["alpha", "alpha_with_sizes", "sigma"])
def test_denoise_is_the_pipelines_own_call(request, name):
    """Every argument that the pipeline passes is what denoise passes: the same predictions from the same
    latents."""
    pipe = request.getfixturevalue(name)
    adapter = adapter_for(pipe)
    kwargs = {"prompt": ["a red cube"], "guidance_scale": 1.0, "height": 64, "width": 32}
    calls = calls_of(pipe, generator=torch.Generator().manual_seed(0), **kwargs)
    text = adapter.encode_prompts(["a red cube"])
    for args, call in calls:
        latents = adapter.arguments(args, call)["hidden_states"]
        with torch.no_grad():
            expected = pipe.transformer(*args, **call)[0][:, :4]
            found = adapter.denoise(latents, call["timestep"], text)
        assert found.shape == latents.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_prompt_lengths(alpha, sigma):
    prompts = ["a red cube", "a tree"]
    lengths = [adapter_for(pipe).encode_prompts(prompts)["encoder_hidden_states"].shape[1] for pipe in (alpha, sigma)]
    assert lengths == [120, 300]
    text = adapter_for(alpha).encode_prompts(prompts, 20)
    assert text["encoder_hidden_states"].shape == (2, 20, 128)
    assert text["encoder_attention_mask"].sum(1).tolist() == [4, 3]


def test_conditional_rows_are_the_prompts(alpha):
    """Rows that the adapter calls conditional hold the prompt, the others the negative prompt."""
    adapter = adapter_for(alpha)
    (_, guided), *_ = calls_of(alpha, prompt=["a red cube", "a tree"], negative_prompt="sand", guidance_scale=3.0)
    mask = adapter.conditional_rows(4, True)
    text = guided["encoder_hidden_states"]
    prompts = adapter.encode_prompts(["a red cube", "a tree"])["encoder_hidden_states"]
    negative = adapter.encode_prompts(["sand", "sand"])["encoder_hidden_states"]
    torch.testing.assert_close(text[mask], prompts)
    torch.testing.assert_close(text[~mask], negative)
    assert adapter.conditional_rows(3, False).all()
    with pytest.raises(TideError, match="this one has 3, an odd number"):
        adapter.conditional_rows(3, True)


def test_conditional_rows_activations_equal_a_run_on_the_prompt_alone(alpha):
    adapter = adapter_for(alpha)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))

    def first_activations(**kwargs):
        seen = []
        with tap(adapter, {3: lambda x, call: seen.append(x)}):
            alpha(**{**CALL, "prompt": "a red cube", "latents": latents, **kwargs})
        return seen[0]

    guided = first_activations(guidance_scale=3.0, negative_prompt="a tree")
    alone = first_activations(guidance_scale=1.0)
    mask = adapter.conditional_rows(2, True)
    torch.testing.assert_close(guided[mask], alone, rtol=1e-5, atol=1e-5)
    assert (guided[~mask] - alone).abs().max() > 1e-3


def test_conditioning_is_what_the_size_embedder_adds(alpha_with_sizes):
    adapter = adapter_for(alpha_with_sizes)
    emb = alpha_with_sizes.transformer.adaln_single.emb
    prompt = ["a red cube", "a tree"]
    (args, kwargs), *_ = calls_of(alpha_with_sizes, prompt=prompt, height=64, width=32, guidance_scale=3.0)
    assert kwargs["added_cond_kwargs"]["resolution"].tolist() == [[64, 32]] * 4
    with torch.no_grad():
        whole = emb(kwargs["timestep"], **kwargs["added_cond_kwargs"], batch_size=4, hidden_dtype=torch.float32)
        time = emb.timestep_embedder(emb.time_proj(kwargs["timestep"]))
    seen: list[torch.Tensor] = []
    with torch.no_grad(), tap(adapter, {0: lambda x, call: seen.append(call.conditioning)}):
        alpha_with_sizes.transformer(*args, **kwargs)
    (found,) = seen
    assert found.shape == (4, 48)
    torch.testing.assert_close(found, whole - time, rtol=1e-5, atol=1e-6)


def test_noise_schedule(alpha):
    """Eq. 3, and every prediction type leads back to the noise."""
    adapter = adapter_for(alpha)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([999, 500, 1])
    noisy = adapter.add_noise(clean, noise, timestep)
    # DPM-Solver's own add_noise goes by the steps it was last set to, DDIM's by the training schedule.
    reference = DDIMScheduler.from_config(alpha.scheduler.config)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, timestep))
    abar = alpha.scheduler.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
    predictions = {
        "epsilon": noise,
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean,
        "sample": clean,
    }
    for kind, prediction in predictions.items():
        scheduler = type(alpha.scheduler).from_config(alpha.scheduler.config, prediction_type=kind)
        other = PixArtAdapter(SimpleNamespace(transformer=alpha.transformer, scheduler=scheduler))
        tolerance = 1e-3 if kind == "sample" else 1e-5  # divides by sqrt(1 - abar), 0.01 at t = 1
        torch.testing.assert_close(
            other.predicted_noise(prediction, noisy, timestep), noise, rtol=tolerance, atol=tolerance
        )
    for wrong in (1000, -1):
        with pytest.raises(TideError, match=rf"timestep {wrong} does not exist; this scheduler has 0\.\.999"):
            adapter.add_noise(clean, noise, wrong)


def test_schedulers_that_do_not_fit(alpha):
    clean = torch.zeros(1, 4, 8, 8)
    flow = PixArtAdapter(SimpleNamespace(transformer=alpha.transformer, scheduler=FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(TideError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        flow.add_noise(clean, clean, 5)
    odd = SimpleNamespace(config=SimpleNamespace(prediction_type="score"), alphas_cumprod=torch.ones(10))
    with pytest.raises(TideError, match="prediction_type 'score' is unknown"):
        PixArtAdapter(SimpleNamespace(transformer=alpha.transformer, scheduler=odd)).predicted_noise(clean, clean, 5)


def test_sampling_timesteps_are_the_pipelines_and_leave_its_scheduler_alone(alpha):
    adapter = adapter_for(alpha)
    calls_of(alpha, prompt="a tree", num_inference_steps=5)
    before = copy.deepcopy(alpha.scheduler.__dict__)
    grid = adapter.sampling_timesteps(20)
    after = alpha.scheduler.__dict__
    assert before.keys() == after.keys()
    assert torch.equal(before["timesteps"], after["timesteps"])
    assert before["num_inference_steps"] == after["num_inference_steps"] == 5
    seen = [kwargs["timestep"][0].item() for _, kwargs in calls_of(alpha, prompt="a tree", num_inference_steps=20)]
    assert grid.tolist() == seen
    assert len(grid) == 20
    assert (grid.diff() < 0).all()
    ddim = SimpleNamespace(transformer=alpha.transformer, scheduler=DDIMScheduler())
    assert PixArtAdapter(ddim).sampling_timesteps(3).tolist() == [666, 333, 0]
    with pytest.raises(TideError, match=r"0 sampling steps asked for; give 1\.\.1000"):
        adapter.sampling_timesteps(0)


def test_encode_images(alpha):
    adapter = adapter_for(alpha)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = alpha.vae.encode(images).latent_dist
    mode = adapter.encode_images(images)
    torch.testing.assert_close(mode, posterior.mode() * alpha.vae.config.scaling_factor)
    draws = [adapter.encode_images(images, torch.Generator().manual_seed(3)) for _ in range(2)]
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    assert not torch.equal(draws[0], mode)


def test_parts_that_are_missing(alpha):
    bare = SimpleNamespace(transformer=alpha.transformer, vae=None, text_encoder=None, tokenizer=None)
    adapter = PixArtAdapter(bare)
    with pytest.raises(TideError, match="no VAE"):
        adapter.encode_images(torch.zeros(1, 3, 64, 64))
    with pytest.raises(TideError, match="no text encoder"):
        adapter.encode_prompts(["a tree"])


@pytest.fixture
def registering(tmp_path) -> Iterator[None]:
    """What a test registers ends with it."""
    with own_modules(tmp_path):
        yield


@pytest.mark.usefixtures("registering")
def test_registry(alpha, tmp_path):
    class Unknown(torch.nn.Module):
        pass

    with pytest.raises(TideError, match=r"^Unknown has no adapter; the nearest family is .*probe.*--adapter"):
        adapter_for(SimpleNamespace(transformer=Unknown()))
    with pytest.raises(TideError, match=r"a SimpleNamespace is not a pipeline with a transformer"):
        adapter_for(SimpleNamespace())

    class Tuned(type(alpha.transformer)):
        """A subclass of a supported transformer is served by its adapter."""

    tuned = object.__new__(type(alpha))
    vars(tuned)["transformer"] = Tuned(num_layers=1, attention_head_dim=4, num_attention_heads=3)
    assert isinstance(adapter_for(tuned), PixArtAdapter)

    with own_modules(tmp_path):

        @register(Tuned)
        class TunedAdapter(PixArtAdapter):
            family = "tuned"

        assert adapter_for(tuned).family == "tuned"


def test_an_adapter_must_be_complete(alpha):
    class Incomplete(Adapter):
        family = "incomplete"

    with pytest.raises(TypeError, match="abstract"):
        Incomplete(alpha)

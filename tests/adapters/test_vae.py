"""Images to latents and back as the pipeline itself does it, whatever kind of VAE it holds."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.families import CORE, FAMILIES, pipeline
from tests.helpers.families.parts import build_vae
from tests.helpers.vaes import VAES, vae
from tide.adapters import adapter_for
from tide.adapters.standins import listened
from tide.errors import TideError

#: Families whose pipelines subtract a shift, with the sizes that fit eight pixels a latent.
SHIFTS = {"sd3", "flux", "lumina2"}
SIZES = {name: (64, 64) if name == "dit" else (64, 32) for name in CORE}


def with_vae(name: str, autoencoder: Any) -> Any:
    """The family's pipeline with another VAE, made by its own constructor."""
    pipe = pipeline(name)
    taken = inspect.signature(type(pipe).__init__).parameters
    options: dict[str, Any] = {"requires_safety_checker": False, "id2label": {1: "house"}}
    parts = {**options, **pipe.components, "vae": autoencoder}
    made = type(pipe)(**{part: value for part, value in parts.items() if part in taken})
    if name == "flux":
        made.default_sample_size = 8
    made.set_progress_bar_config(disable=True)
    return made


def can_hold(name: str, kind: str) -> bool:
    """Whether diffusers' own pipeline can be made with this VAE and decodes with it."""
    config = vae(kind).config
    if name == "sana":
        return "encoder_block_out_channels" in config
    shifted = name not in SHIFTS or config.get("shift_factor") is not None
    return shifted and (name == "dit" or "block_out_channels" in config)


PAIRS = [(name, kind) for name in CORE for kind in VAES if can_hold(name, kind)]


def test_every_kind_is_held_by_some_pipeline():
    assert {kind for _, kind in PAIRS} == VAES.keys()


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_latents_are_what_the_pipeline_itself_decodes(name, kind):
    """Its own picture is that of ``decode_latents(generate(...))``, and ``encode_images`` is the inverse of what it
    does to latents before it decodes them."""
    family, own = FAMILIES[name], adapter_for(with_vae(name, vae(kind)))
    pipe, (height, width) = own.pipe, SIZES[name]
    arguments = {"guidance_scale": 1.0, **family.arguments, "height": height, "width": width}
    given: list[torch.Tensor] = []
    with listened(pipe.vae, "decode", before=lambda z, *_, **__: given.append(z.clone())):
        latents = own.generate(
            family.prompts, n_steps=2, generators=[torch.Generator().manual_seed(i) for i in (0, 1)], **arguments
        )
        mine = own.decode_latents(latents)
        theirs = decoded_by(pipe, name, latents, arguments)
    torch.testing.assert_close(given[-2], given[-1], rtol=1e-5, atol=1e-5)
    if kind != "ConsistencyDecoderVAE":  # it decodes with noise of its own
        torch.testing.assert_close((mine / 2 + 0.5).clamp(0, 1), theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(own.decode_latents(latents), mine)
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    raw: list[torch.Tensor] = []
    with listened(pipe.vae, "decode", before=lambda z, *_, **__: raw.append(z.clone())):
        own.decode_latents(own.encode_images(images))
    torch.testing.assert_close(raw[0], mode(pipe.vae.encode(images)), rtol=1e-4, atol=1e-5)


def mode(found: Any) -> torch.Tensor:
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mode()
    return found.latents if hasattr(found, "latents") else found.latent


def decoded_by(pipe: Any, name: str, latents: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """The picture in [0, 1] that the pipeline draws, from the same noise."""
    options = {**arguments, "prompt": list(FAMILIES[name].prompts)}
    if name == "hunyuan":
        del options["max_sequence_length"]
    if name == "dit":
        options = {"class_labels": [1, 7], "guidance_scale": 1.0}
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    defaults = adapter_for(pipe).call_defaults
    drawn = pipe(**{**defaults, **options, "output_type": "pt"}, num_inference_steps=2, generator=generators).images
    return torch.as_tensor(drawn)


# -- how it is kept -------------------------------------------------------------------------------------------------


def images_of(side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("kind", ["with a shift", "AutoencoderTiny"])
@pytest.mark.parametrize("how", ["slicing", "tiling"])
def test_sliced_and_tiled_vaes(kind, how):
    own = adapter_for(with_vae("sd3", vae(kind)))
    getattr(own.pipe.vae, f"enable_{how}")()
    raw, config = mode(own.pipe.vae.encode(images_of())), own.pipe.vae.config
    latents = own.encode_images(images_of())
    torch.testing.assert_close(latents, (raw - config.shift_factor) * config.scaling_factor)
    torch.testing.assert_close(own.decode_latents(latents), own.pipe.vae.decode(raw).sample.clamp(-1, 1))


def test_a_compiled_vae():
    plain = vae("AutoencoderTiny")
    expected = adapter_for(with_vae("sd3", plain)).encode_images(images_of())
    pipe = with_vae("sd3", plain)
    pipe.vae = torch.compile(plain)
    own = adapter_for(pipe)
    torch.testing.assert_close(own.encode_images(images_of()), expected)
    assert own.decode_latents(expected).shape == (2, 3, 64, 64)


def test_a_float16_vae_that_overflows_is_widened_while_it_works():
    """Activations beyond 65504 are infinite in float16; the config's ``force_upcast`` says so."""
    wide = vae("AutoencoderKL")
    wide.encoder.conv_in.weight.mul_(3e5)
    expected = adapter_for(with_vae("pixart", wide)).encode_images(images_of())
    pipe = with_vae("pixart", wide.half())
    assert not torch.isfinite(mode(pipe.vae.encode(images_of().half()))).all()
    own = adapter_for(pipe)
    torch.testing.assert_close(own.encode_images(images_of()), expected, rtol=1e-2, atol=1e-2)
    assert own.decode_latents(expected).isfinite().all()
    assert pipe.vae.dtype == torch.float16
    pipe.vae.register_to_config(force_upcast=False)
    with pytest.raises(
        TideError, match=r"latents of AutoencoderKL in torch\.float16 are not finite; load .* bf16 or fp32"
    ):
        own.encode_images(images_of())


def test_a_sample_of_the_posterior_and_of_a_vae_without_one():
    own = adapter_for(with_vae("pixart", vae("AutoencoderKL")))
    first, again = (own.encode_images(images_of(), torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, own.encode_images(images_of()))
    tiny = adapter_for(with_vae("pixart", vae("AutoencoderTiny")))
    assert torch.equal(tiny.encode_images(images_of(), torch.Generator()), tiny.encode_images(images_of()))


# -- what is refused ------------------------------------------------------------------------------------------------


def test_a_pipeline_without_a_vae():
    own = adapter_for(with_vae("pixart", None))
    with pytest.raises(TideError, match="no VAE; load it with one or pass latents instead of images"):
        own.encode_images(images_of())
    with pytest.raises(TideError, match="no VAE; load it with one or keep the latents"):
        own.decode_latents(torch.zeros(1, 4, 8, 8))
    dit = adapter_for(with_vae("dit", None))
    with pytest.raises(TideError, match="no VAE; load it with one or "):
        dit.generate(["1"], n_steps=2, guidance_scale=1.0, generators=[torch.Generator()])


def test_a_vae_of_another_model():
    own = adapter_for(with_vae("pixart", build_vae(4, 16).eval()))
    message = r"AutoencoderKL makes latents of shape \[2, 16, 8, 8\] and the transformer draws 4 channels; load .* VAE"
    with pytest.raises(TideError, match=message):
        own.encode_images(images_of())


def test_a_vae_that_encodes_to_something_else():
    class Odd(nn.Module):
        device, dtype = torch.device("cpu"), torch.float32
        config = type("C", (), {"block_out_channels": (1,) * 4, "scaling_factor": 1.0})()

        def encode(self, images):
            return images.flatten(1).tolist()

    pipe = with_vae("pixart", vae("AutoencoderKL"))
    pipe.vae = Odd()
    with pytest.raises(TideError, match="a Odd encodes to a list, which is not known; define encode_images"):
        adapter_for(pipe).encode_images(images_of())

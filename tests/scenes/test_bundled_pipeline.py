"""The bundled pipeline with random weights: a diffusers pipeline like any other, and what is annotated with it."""

from __future__ import annotations

import warnings

import pytest
import torch
from diffusers import PixArtAlphaPipeline

import tide
import tide.scenes.pipeline as bundled
from tide.activations.collect import sample_noise
from tide.adapters import adapter_for, tap
from tide.errors import TideError
from tide.interpretation import Annotated
from tide.scenes import Scene, annotated_scenes, concept_masks, generate_images, images_of, load_pipeline, scenes
from tide.scenes.annotate import encode_captions

CALL = {
    "num_inference_steps": 2, "output_type": "latent", "use_resolution_binning": False, "clean_caption": False,
    "max_sequence_length": bundled.MAX_CAPTION_TOKENS,
}  # fmt: skip


def latents(pipe) -> torch.Tensor:
    return pipe("a red house, far", generator=torch.Generator().manual_seed(0), **CALL).images


def test_round_trip_through_save_pretrained(alpha, tmp_path):
    alpha.save_pretrained(tmp_path)
    loaded = PixArtAlphaPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(latents(loaded), latents(alpha))
    assert loaded.tokenizer("a red house, far").input_ids == alpha.tokenizer("a red house, far").input_ids
    assert loaded.scheduler.config.prediction_type == "v_prediction"


def test_load_pipeline_reads_what_the_package_ships(alpha, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "DATA", tmp_path)
    with pytest.raises(TideError, match=r"pipeline holds no pipeline: reinstall tide-sae, or run `python scripts"):
        load_pipeline()
    alpha.save_pretrained(tmp_path / "pipeline")
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        loaded = load_pipeline()
    assert torch.equal(latents(loaded), latents(alpha))
    assert load_pipeline(torch.bfloat16).transformer.dtype == torch.bfloat16


def test_the_shipped_pipeline_loads():
    if not (bundled.DATA / "pipeline" / "model_index.json").is_file():
        pytest.skip("the trained pipeline is not in this checkout")
    transformer = tide.scenes.load_pipeline().transformer
    assert transformer.config.num_layers == 8
    assert transformer.config._name_or_path == "scenes"  # checkpoints record the name, not an installation's folder


def test_its_size():
    pipe = bundled.build_pipeline()
    n = sum(p.numel() for part in (pipe.transformer, pipe.text_encoder, pipe.vae) for p in part.parameters())
    assert 5e6 < n < 7e6
    assert not any(part.training for part in (pipe.transformer, pipe.text_encoder, pipe.vae))


def test_an_untrained_transformer_predicts_nothing():
    """PixArt's own start: zero cross-attention and zero output."""
    transformer = bundled.build_transformer()
    assert not transformer.proj_out.weight.any()
    assert all(not block.attn2.to_out[0].weight.any() for block in transformer.transformer_blocks)


def test_generated_images_depend_on_their_own_seed(alpha):
    adapter = adapter_for(alpha)
    prompts = ["a red cube", "a tree, far", "a red cube"]
    together = generate_images(adapter, prompts, [1, 2, 3], n_steps=2)
    alone = generate_images(adapter, prompts[1:2], [2], n_steps=2)
    assert together.shape == (3, 3, 64, 64)
    assert together.abs().max() <= 1
    torch.testing.assert_close(alone[0], together[1], rtol=1e-4, atol=1e-4)
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_decode_latents_undoes_the_scaling(alpha):
    adapter = adapter_for(alpha)
    images = images_of(list(scenes("train", 2)))
    with torch.no_grad():
        mode = alpha.vae.encode(images).latent_dist.mode()
        expected = alpha.vae.decode(mode).sample.clamp(-1, 1)
    torch.testing.assert_close(adapter.decode_latents(adapter.encode_images(images)), expected, rtol=1e-4, atol=1e-5)


# -- annotated scenes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def annotated(alpha) -> tuple[list[Scene], dict[int, Annotated]]:
    chosen = list(scenes("train", 3, seed=2))
    found = annotated_scenes(adapter_for(alpha), chosen, [2, 6], torch.tensor([700, 100]), seed=4, batch_size=2)
    return chosen, found


def test_annotated_scenes_hold_the_blocks_activations(alpha, annotated):
    chosen, found = annotated
    adapter = adapter_for(alpha)
    assert list(found) == [2, 6]
    noise = sample_noise((3, 4, 16, 16), 4, 0)
    with torch.no_grad():
        clean = adapter.encode_images(images_of(chosen))
        text = encode_captions(adapter, [scene.caption() for scene in chosen])
        for i, t in enumerate((700, 100)):
            seen = {}
            with tap(adapter, {block: lambda x, call, b=block, s=seen: s.update({b: x.clone()}) for block in (2, 6)}):
                adapter.denoise(adapter.add_noise(clean, noise, t), t, text)
            for block in (2, 6):
                x = found[block].x[i]
                assert x.shape == (3, 64, 192)
                torch.testing.assert_close(x, seen[block], rtol=1e-4, atol=1e-4)
    assert found[6].timesteps.tolist() == [700.0, 100.0]


def test_annotated_scenes_know_their_concepts(annotated):
    chosen, found = annotated
    expected = concept_masks(chosen, (8, 8))
    for data in found.values():
        assert data.masks.keys() == expected.keys()
        for name, mask in expected.items():
            assert torch.equal(data.masks[name], mask)
            assert torch.equal(data.labels[name], mask.any(1))


def test_no_scenes(alpha):
    with pytest.raises(TideError, match="there are no scenes to annotate; give at least one"):
        annotated_scenes(adapter_for(alpha), [], [6], torch.tensor([5]))

"""The tiny pipeline of videos before its training: what it has of the bundled one, and that TIDE takes it."""

from __future__ import annotations

import pytest
import torch

import tide
from tide.errors import TideError
from tide.scenes import LEVEL_OF
from tide.scenes.moving import MOVING_VOCABULARY, annotated_clips, clips_of, moving_prompts, moving_scenes
from tide.scenes.scene import VOCABULARY
from tide.scenes.video import build_video_pipeline


@pytest.fixture(scope="module")
def pipe(alpha):
    torch.manual_seed(0)
    return build_video_pipeline(alpha)


@pytest.fixture(scope="module")
def adapter(pipe):
    return tide.adapter_for(pipe)


def test_it_draws_each_frame_as_the_pipeline_that_it_continues(pipe, alpha):
    """Without the positions of frames, which are added after the first block, and with the words of still scenes."""
    assert pipe.vae is alpha.vae
    words = "a red house, far"
    ids = alpha.tokenizer(words, return_tensors="pt").input_ids
    assert torch.equal(ids, pipe.tokenizer(words, return_tensors="pt").input_ids)
    assert len(pipe.tokenizer) == len(alpha.tokenizer) + len(MOVING_VOCABULARY) - len(VOCABULARY)
    x, t = torch.randn(1, 4, 8, 16, 16), torch.tensor([500])
    kept = pipe.transformer.temp_pos_embed.clone()
    with torch.no_grad():
        text, same = (p.text_encoder(ids).last_hidden_state for p in (alpha, pipe))
        assert torch.equal(text, same)
        pipe.transformer.temp_pos_embed.zero_()
        clip = pipe.transformer(x, timestep=t, encoder_hidden_states=text).sample
        pipe.transformer.temp_pos_embed.copy_(kept)
        sizes = {"resolution": None, "aspect_ratio": None}
        for i in range(8):
            frame = alpha.transformer(x[:, :, i], timestep=t, encoder_hidden_states=text, added_cond_kwargs=sizes)
            torch.testing.assert_close(clip[:, :, i], frame.sample, rtol=1e-4, atol=1e-4)


def test_it_draws_clips(pipe, adapter):
    def draw(prompts):
        generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
        size = {"height": 64, "width": 64, "video_length": 8}
        return adapter.generate(prompts, n_steps=2, guidance_scale=2.0, generators=generators, **size)

    latents = draw(["a red cube moving left", "a blue cone standing still"])
    assert latents.shape == (2, 4, 8, 16, 16)
    assert torch.equal(latents, draw(["a red cube moving left", "a blue cone standing still"]))
    clips = adapter.decode_latents(latents)
    assert clips.shape == (2, 3, 8, 64, 64)
    assert pipe("a red cube", num_inference_steps=1, height=64, width=64, video_length=8, clean_caption=False).frames


def test_it_is_saved_and_loaded(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path)
    for name in ("transformer", "text_encoder"):
        first, second = getattr(pipe, name).state_dict(), getattr(loaded, name).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert loaded.scheduler.config.prediction_type == "v_prediction"


def test_it_starts_anew_without_a_pipeline_to_continue():
    transformer = build_video_pipeline().transformer
    assert len(transformer.temporal_transformer_blocks) == 8
    assert not transformer.temporal_transformer_blocks[3].ff.net[2].weight.any()


def test_annotated_clips_are_what_collect_sees(adapter):
    items = [item for item, _ in moving_prompts("dev", 3, 2)]
    timesteps = torch.tensor([700, 200])
    annotated = annotated_clips(adapter, items, [4, 5], timesteps, batch_size=2)
    assert annotated.keys() == {4, 5}
    assert annotated[5].x.shape == (2, 3, 8 * 64, 192)
    assert annotated[5].masks.keys() == LEVEL_OF.keys()
    assert annotated[5].masks["near"].shape == (3, 8 * 64)
    latents = adapter.encode_images(clips_of(items[:2]))
    text = adapter.encode_prompts([item.caption() for item in items[:2]])
    seen = []
    for found in tide.collect(adapter, [(latents, text)], [4], token_fraction=1, paired=False, timesteps=[700]):
        batch = found[4]
        assert batch.x.shape == (2 * 8 * 64, 192)
        seen = batch.token.view(2, -1).tolist()
    assert seen == [list(range(512))] * 2


@pytest.mark.parametrize("n_frames", [1, 4])
def test_a_clip_of_other_frames_is_refused(adapter, n_frames):
    """By the transformer itself, but for one frame alone."""
    items = list(moving_scenes("dev", 1))
    if n_frames == 1:
        assert annotated_clips(adapter, items, [0], torch.tensor([500]), n_frames=1)[0].x.shape == (1, 1, 64, 192)
        return
    with pytest.raises((TideError, RuntimeError), match=r"frames|size"):
        annotated_clips(adapter, items, [2], torch.tensor([500]), n_frames=n_frames)


def test_no_clips(adapter):
    with pytest.raises(TideError, match="there are no clips to annotate; give at least one"):
        annotated_clips(adapter, [], [0], torch.tensor([500]))

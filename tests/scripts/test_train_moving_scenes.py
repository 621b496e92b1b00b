"""The script of the tiny pipeline of videos: prompts as the pipeline gives them, resumed training, mistakes."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
import train_moving_scenes
from train_moving_scenes import draw_clips, judged, load_trained, predicted, train
from training_state import State

import tide
from tide.scenes.moving import clips_of, moving_prompts, moving_scenes
from tide.scenes.pipeline import MAX_CAPTION_TOKENS
from tide.scenes.video import build_video_pipeline


@pytest.fixture(scope="module")
def start(alpha, tmp_path_factory):
    """The folder of a pipeline with random weights, to continue."""
    path = tmp_path_factory.mktemp("start")
    alpha.save_pretrained(path)
    return path


@pytest.mark.parametrize("alone", [False, True])
def test_prompts_weigh_as_in_the_pipeline(alpha, alone):
    """The prediction for captions with little padding equals that for what the pipeline encodes."""
    torch.manual_seed(0)
    pipe = build_video_pipeline(alpha)
    model = torch.nn.ModuleDict({"text_encoder": pipe.text_encoder, "transformer": pipe.transformer}).eval()
    captions = ["a red cube moving left"] if alone else ["a red cube moving left", "a house", "a far tree, white"]
    x, t = torch.randn(len(captions), 4, 8, 16, 16), torch.full((len(captions),), 500)
    with torch.no_grad():
        text, negative = pipe.encode_prompt(captions, True, clean_caption=False)
        assert text.shape[1] == (6 if alone else train_moving_scenes.LENGTH)
        found = predicted(model, x, t, captions, pipe.tokenizer, torch.full((len(captions),), alone))
        wanted = pipe.transformer(x, timestep=t, encoder_hidden_states=text).sample
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        if not alone:
            found = predicted(model, x, t, [""] * 3, pipe.tokenizer, torch.zeros(3, dtype=torch.bool))
            wanted = pipe.transformer(x, timestep=t, encoder_hidden_states=negative).sample
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert pipe.tokenizer.model_max_length == MAX_CAPTION_TOKENS


def test_a_training_that_was_stopped_ends_with_the_same_bits(start, tmp_path, monkeypatch):
    def weights(folder, steps, **kwargs):
        train(tmp_path / folder, tmp_path / folder / "final", 3, steps, 2, 4, start=start, **kwargs)
        return (tmp_path / folder / "final" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()

    monkeypatch.setattr(train_moving_scenes, "SAVED_EVERY", 1)
    whole = weights("whole", 2)
    saved = State.save

    def stop(self, step, tensors):
        saved(self, step, tensors)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(State, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            weights("parts", 2)
    assert weights("parts", 2) == whole
    pipe = load_trained(tmp_path / "whole" / "final")
    adapter = tide.adapter_for(pipe)
    assert adapter.generate(
        ["a red cube"], n_steps=1, guidance_scale=1.0, generators=[torch.Generator()], height=64, width=64, num_frames=8
    ).shape == (1, 4, 8, 16, 16)


def test_what_the_script_writes(start, tmp_path, monkeypatch, capsys):
    words = ["--work", tmp_path / "work", "--start", start, "--steps", 1, "--batch", 2, "--scenes", 3, "--drawn", 2]
    monkeypatch.setattr(sys, "argv", ["train_moving_scenes.py", *map(str, words)])
    monkeypatch.setattr(train_moving_scenes, "DRAWING_STEPS", 1)
    train_moving_scenes.main()
    drawn = json.loads((tmp_path / "work" / "final" / "drawn.json").read_text())
    assert drawn["clips"] == 2
    assert {"direction", "colour", "class"} < drawn["drawn"].keys()
    assert drawn["rendered, through the VAE"].keys() == drawn["drawn"].keys()
    assert (tmp_path / "work" / "final" / "drawn.png").exists()
    assert "drawn: direction" in capsys.readouterr().out


def test_what_is_rendered_is_judged_right():
    items = list(moving_scenes("test", 6, seed=2))
    found = judged(clips_of(items), items)
    assert found["direction"] == 1.0
    assert found["depth"] == 1.0
    wrong = judged(clips_of(items[1:] + items[:1]), items)
    assert wrong["direction"] < 0.7


def test_clips_that_are_drawn_depend_on_their_own_seeds(alpha):
    torch.manual_seed(0)
    pipe = build_video_pipeline(alpha)
    clips = draw_clips(pipe, ["a red cube", "a house"], seed=5, n_steps=1, guidance_scale=1.0)
    assert clips.shape == (2, 3, 8, 64, 64)
    assert clips.abs().max() <= 1
    assert torch.equal(clips, draw_clips(pipe, ["a red cube", "a house"], seed=5, n_steps=1, guidance_scale=1.0))


def test_captions_are_drawn_in_their_shares():
    ((scene, _),) = moving_prompts("train", 1)
    rng = np.random.default_rng(0)
    drawn = [train_moving_scenes._draw_caption(scene, rng) for _ in range(2000)]
    assert drawn.count("") / 2000 == pytest.approx(0.1, abs=0.03)
    assert all(scene.motion.split()[1] in each for each in drawn if each)
    assert len(set(drawn)) > 20


def test_a_mistake_is_told_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_moving_scenes.py", "--start", "none"])
    with pytest.raises(SystemExit) as ended:
        train_moving_scenes.main()
    assert ended.value.code == 2
    assert "none holds no pipeline; --start is the folder of one" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

"""A pipeline of one's own pictures: stages resume with the same bits, and TIDE takes what they write."""

from __future__ import annotations

import sys

import numpy as np
import pipeline_training
import pytest
import torch
import train_pictures
from diffusers import AutoencoderKL, PixArtAlphaPipeline
from named_pictures import Pictures
from pipeline_training import Parts, fit_transformer, fit_vae
from training_state import State

from tests.helpers.image_folders import list_captions, save
from tide.adapters import adapter_for
from tide.errors import TideError
from tide.scenes import pipeline as bundled

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    for name, colour in COLOURS.items():
        save(path / f"{name}.png", colour)
    rows = [{"file_name": f"{name}.png", "text": f"{name} square", "texts": [name]} for name in COLOURS]
    list_captions(path, rows)
    return path


def parts(seed: int = 0) -> Parts:
    torch.manual_seed(seed)
    tokenizer = bundled.build_tokenizer(list(COLOURS), 6)
    return Parts(tokenizer, bundled.build_text_encoder(len(tokenizer)), bundled.build_transformer(1))


def draw(rng: np.random.Generator):
    return torch.from_numpy(rng.standard_normal((2, 4, 16, 16))).float(), ["red", "blue"]


class Killed(Exception):
    """Raised in a training to stop it."""


def stopping_at(step: int, monkeypatch):
    """Stops a training after it has saved ``step``."""
    save_state = State.save

    def stop(self, at, tensors):
        save_state(self, at, tensors)
        if at == step:
            raise Killed

    monkeypatch.setattr(State, "save", stop)


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_transformer_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch):
    vae = bundled.build_vae()
    monkeypatch.setattr(pipeline_training, "save_pipeline", lambda *_: None)
    whole = fit_transformer(parts(), vae, draw, tmp_path / "whole", 3, steps=4, lr=1e-3, every=2)
    with monkeypatch.context() as patched:
        stopping_at(2, patched)
        with pytest.raises(Killed):
            fit_transformer(parts(), vae, draw, tmp_path / "parts", 3, steps=4, lr=1e-3, every=2)
    again = fit_transformer(parts(seed=9), vae, draw, tmp_path / "parts", 3, steps=4, lr=1e-3, every=2)
    assert equal(whole, again)
    assert not equal(again, fit_transformer(parts(), vae, draw, tmp_path / "other", 4, steps=4, lr=1e-3))


def test_a_vae_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch):
    def train(path):
        torch.manual_seed(0)
        vae = bundled.build_vae().train()
        fit_vae(vae, lambda: torch.rand(1, 3, 16, 16) * 2 - 1, State(path), steps=4, lr=1e-3, every=2)
        return vae

    whole = train(tmp_path / "whole.safetensors")
    with monkeypatch.context() as patched:
        stopping_at(2, patched)
        with pytest.raises(Killed):
            train(tmp_path / "parts.safetensors")
    assert equal(whole, train(tmp_path / "parts.safetensors"))


def test_a_vae_that_has_made_more_steps_is_refused(tmp_path):
    def train(steps):
        state = State(tmp_path / "vae.safetensors")
        fit_vae(bundled.build_vae().train(), lambda: torch.rand(1, 3, 16, 16), state, steps=steps, lr=1e-3, every=1)

    train(3)
    with pytest.raises(TideError, match="has made 3 steps; ask for as many or more, or delete it"):
        train(2)


def test_weights_for_other_words_are_refused(tmp_path):
    fit_transformer(parts(), bundled.build_vae(), draw, tmp_path, 0, steps=1, lr=1e-3)
    tokenizer = bundled.build_tokenizer([*COLOURS, "violet"], 6)
    other = parts()
    other = Parts(tokenizer, bundled.build_text_encoder(len(tokenizer)), other.transformer)
    with pytest.raises(TideError, match=r"has shape .*; delete it to train the stage again"):
        fit_transformer(other, bundled.build_vae(), draw, tmp_path, 0, steps=2, lr=1e-3)


def test_moments_of_another_model_are_refused(tmp_path):
    state = tmp_path / "transformer-state.safetensors"
    fit_transformer(parts(), bundled.build_vae(), draw, tmp_path, 0, steps=1, lr=1e-3)
    step, tensors = State(state).load()
    tensors["optimizer.0.exp_avg"] = torch.zeros(3)
    State(state).save(step, tensors)
    with pytest.raises(TideError, match="moments of another model; delete it"):
        fit_transformer(parts(), bundled.build_vae(), draw, tmp_path, 0, steps=2, lr=1e-3)


def test_captions_are_drawn_in_their_shares():
    picture = {"file_name": "a.png", "text": "A", "texts": ["b", "c"]}
    rng = np.random.default_rng(0)
    drawn = [train_pictures._draw_caption(picture, rng) for _ in range(2000)]
    shares = {caption: drawn.count(caption) / 2000 for caption in ("", "a", "b", "c")}
    # Five standard deviations of a share of 2000 draws are below 0.06.
    assert shares == pytest.approx({"": 0.1, "a": 0.6, "b": 0.15, "c": 0.15}, abs=0.06)
    alone = [train_pictures._draw_caption({"file_name": "a.png", "text": "A"}, rng) for _ in range(100)]
    assert set(alone) == {"", "a"}


def test_latents_have_the_picture_as_it_is_first(data):
    vae = bundled.build_vae().eval()
    pictures = Pictures.read(data)
    latents = train_pictures._latents(vae, pictures, 0)
    assert latents.shape == (train_pictures.VERSIONS, 3, 4, 16, 16)
    plain = pipeline_training.encode(vae, torch.stack([pictures.image(i) for i in range(3)]))
    torch.testing.assert_close(latents[0], plain)
    assert torch.equal(train_pictures._latents(vae, pictures, 0), latents)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "none"], "metadata.jsonl does not exist; check the path"),
        (["--data", "{data}", "--start", "none"], "none/vae holds no VAE; --start is the folder of a pipeline"),
        (["transformer", "--data", "{data}", "--work", "none"], "none/vae holds no VAE; train the stage vae first"),
        (["--data", "{data}", "--steps", "0"], "'0' is not a whole number of at least 1"),
        (["--data", "{data}", "--batch", "many"], "'many' is not a whole number of at least 1"),
    ],
)
def test_a_mistake_is_told_in_a_line(data, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_pictures.py", *(word.format(data=data) for word in words)])
    with pytest.raises(SystemExit) as ended:
        train_pictures.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in error.splitlines()[-1]
    assert error.startswith(("error: ", "usage: "))


def test_the_whole_script(data, tmp_path, monkeypatch):
    bundled.build_pipeline().vae.save_pretrained(tmp_path / "start" / "vae")
    monkeypatch.setattr(train_pictures, "BLOCKS", 2)
    argv = ["train_pictures.py", "--data", data, "--work", tmp_path / "work", "--out", tmp_path / "out"]
    argv += ["--start", tmp_path / "start", "--vae-steps", 1, "--steps", 1, "--batch", 2]
    monkeypatch.setattr(sys, "argv", [str(each) for each in argv])
    train_pictures.main()
    pipe = PixArtAlphaPipeline.from_pretrained(tmp_path / "out")
    vae = AutoencoderKL.from_pretrained(tmp_path / "work" / "vae")
    assert vae.config.scaling_factor == pipe.vae.config.scaling_factor
    assert pipe.transformer.config.num_layers == 2
    assert pipe.tokenizer("red square").input_ids == [*pipe.tokenizer.convert_tokens_to_ids(["red", "square"]), 1]
    assert pipe.tokenizer("violet").input_ids == [pipe.tokenizer.unk_token_id, 1]
    assert '"truncation": null' in (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text()
    assert adapter_for(pipe.to(torch.float32)).encode_prompts(["red square"])

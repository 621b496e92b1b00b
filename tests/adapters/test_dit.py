"""What is special of DiT: classes for prompts, blocks that embed them on their own, a pipeline that only decodes."""

from __future__ import annotations

import json

import pytest
import torch

from tests.helpers.families import adapter, draw, pipeline, prepared
from tests.helpers.families.dit import build_dit
from tide.activations import collect
from tide.adapters import tap
from tide.errors import TideError
from tide.loading import load_adapter


def test_prompts_are_classes_by_name_or_number():
    own = adapter("dit")
    assert own.encode_prompts(["tench", "Tinca tinca", "house", "999", ""])["class_labels"].tolist() == [
        0,
        0,
        1,
        999,
        1000,
    ]
    assert own.encode_prompts([" house ", "\n"])["class_labels"].tolist() == [1, 1000]


NAMES = "give one of its 3 names ('Tinca tinca', 'house', 'tench') or of its numbers 0..999"


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("a red cube", NAMES),
        ("1000", NAMES),
        ("-1", NAMES),
        ("9" * 5000, NAMES),
        ("House", "give one of its 3 names ('house', 'Tinca tinca', 'tench') or of its numbers 0..999"),
    ],
)
def test_a_caption_that_is_no_class_is_told_the_classes(wrong, remedy):
    with pytest.raises(TideError) as raised:
        adapter("dit").encode_prompts([wrong])
    shown = wrong if len(wrong) <= 60 else f"{wrong[:57]}..."
    assert str(raised.value) == f"{shown!r} is not a class of this model; {remedy}"


def test_a_saved_pipeline_has_lost_its_names_and_says_how_to_give_them_back(tmp_path):
    pipeline("dit").save_pretrained(tmp_path)
    own = load_adapter(tmp_path, device="cpu")
    message = (
        "'house' is not a class of this model; it has no names of classes, which diffusers drops when it saves a "
        'DiTPipeline; give numbers, 0..999, or add "id2label": {"0": "<name>", ...} to its model_index.json (in '
        "Python: set pipe.labels = {name: number})"
    )
    with pytest.raises(TideError) as raised:
        own.encode_prompts(["house"])
    assert str(raised.value) == message
    assert own.encode_prompts(["7"])["class_labels"].tolist() == [7]
    own.pipe.labels = {"house": 1}
    assert own.encode_prompts(["house"])["class_labels"].tolist() == [1]
    index = tmp_path / "model_index.json"
    index.write_text(
        json.dumps({**json.loads(index.read_text()), "id2label": {"0": "tench, Tinca tinca", "1": "house"}})
    )
    again = load_adapter(tmp_path, device="cpu")
    assert again.encode_prompts(["house", "tench"])["class_labels"].tolist() == [1, 0]


def test_each_block_embeds_the_class_on_its_own():
    """As many conditionings as blocks are tapped or collected."""
    own, seen = adapter("dit"), {}
    latents, text = torch.randn(2, 4, 8, 8), own.encode_prompts(["house", ""])
    with torch.no_grad(), tap(own, {i: lambda x, call, i=i: seen.update({i: call.conditioning}) for i in range(3)}):
        own.denoise(latents, 500, text)
    for i, conditioning in seen.items():
        table = own.blocks[i].norm1.emb.class_embedder.embedding_table.weight
        # What the embedder returned less the timestep's part of it, in float32.
        torch.testing.assert_close(conditioning, table[[1, 1000]], rtol=1e-4, atol=1e-5)
    (batches,) = collect(own, [(latents, text)], [0, 2], paired=False)
    for i, batch in batches.items():
        torch.testing.assert_close(batch.conditioning, seen[i], rtol=1e-4, atol=1e-5)


def test_rows_without_a_class_are_unconditional():
    own, seen = adapter("dit"), []
    with tap(own, {1: lambda x, call: seen.append(call.conditional.tolist())}):
        draw("dit", guided=True, n_steps=2)
    assert seen == [[True, True, False, False]] * 2
    assert own.conditional_rows(4, True).tolist() == seen[0]
    assert own.conditional_rows(3, False).all()


def test_generate_returns_what_the_pipeline_decodes():
    own, pipe = adapter("dit"), pipeline("dit")
    latents = draw("dit", guided=True)
    images = pipe(
        [1, 7], 3.0, [torch.Generator().manual_seed(i) for i in range(2)], num_inference_steps=3, output_type="pt"
    ).images
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), images, rtol=1e-4, atol=1e-5)
    assert own.default_latents == (8, 8)


def test_one_size_and_squares_only():
    own = adapter("dit")
    with pytest.raises(TideError, match="draws 32 x 32 pixels, not 64 x 32"):
        draw("dit", height=64)
    with pytest.raises(TideError, match="DiT draws squares"):
        own.denoise(torch.zeros(1, 4, 8, 4), 5, own.encode_prompts(["7"]))


def test_a_failing_decoder_is_put_back():
    pipe = prepared(build_dit())
    own = pipe.vae.decode = lambda z: 1 / 0
    with pytest.raises(ZeroDivisionError):
        draw("dit", pipe=pipe)
    assert pipe.vae.decode is own

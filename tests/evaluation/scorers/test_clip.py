"""CLIP of a tiny model from disk against transformers and torchmetrics."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from tests.helpers.scorer_inputs import TEXTS, random_images
from tests.helpers.tiny_clip import LONGEST, save_tiny_clip
from tide.errors import TideError
from tide.evaluation.scorers import CLIPScorer
from tide.pictures import to_image

pytest.importorskip("torchmetrics", reason="torchmetrics is in the extras dev and scores")
from torchmetrics.multimodal import CLIPScore


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder) -> CLIPScorer:
    return CLIPScorer(clip_folder)


def test_clip_embeds_what_transformers_does(clip):
    """Of the images as they are saved."""
    images = random_images()
    files: list[Image.Image] = [to_image(image) for image in images]
    inputs = clip.processor(text=TEXTS, images=files, return_tensors="pt", padding=True)
    with torch.no_grad():
        found = clip.model(**inputs)
    embedded, texts = clip.embed_images(images), clip.embed_texts(TEXTS)
    assert embedded.shape == texts.shape == (3, 12)
    assert embedded.dtype == torch.float32
    for ours, theirs in ((embedded, found.image_embeds), (texts, found.text_embeds)):
        torch.testing.assert_close(nn.functional.normalize(ours), nn.functional.normalize(theirs))
        assert not torch.allclose(ours.norm(dim=1), torch.ones(3), rtol=0.01)
    expected = (found.image_embeds * found.text_embeds).sum(1)
    torch.testing.assert_close(clip.similarity(images, TEXTS), expected)


def test_clip_does_not_depend_on_the_batch(clip):
    images = random_images()
    alone = [clip.similarity(images[i : i + 1], TEXTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(clip.similarity(images, TEXTS), torch.cat(alone))


class _Clip4:
    """As in transformers 4, whose features torchmetrics 1.9 takes: they are a tensor."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.config = model, model.config

    def to(self, device: torch.device) -> _Clip4:
        return self

    def get_image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        found = self.model.get_image_features(pixels)
        return getattr(found, "pooler_output", found)

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found = self.model.get_text_features(ids, mask)
        return getattr(found, "pooler_output", found)


@pytest.mark.parametrize("sign", [1, -1], ids=["above 0", "below 0"])
def test_clip_score_of_torchmetrics(clip, sign):
    """max(100 m, 0) of the mean similarity m; for one below 0, of the pairs that are."""
    images = random_images(8).repeat_interleave(3, 0)
    texts = TEXTS * 8
    similarity = clip.similarity(images, texts)
    chosen = (similarity * sign > 0).nonzero()[:, 0].tolist()
    assert chosen
    metric = CLIPScore(lambda: (_Clip4(clip.model), clip.processor))
    pixels = ((images[chosen] + 1) * 127.5).round().byte()
    metric.update(list(pixels), [texts[i] for i in chosen])
    expected = max(100 * float(similarity[chosen].mean()), 0)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-5)


def test_clip_cuts_a_long_text(clip):
    read = LONGEST - 2  # start and end
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = clip.embed_texts(["x" * read])
    with pytest.warns(UserWarning, match=f"a text of {LONGEST + 5} tokens is cut to the {LONGEST} that CLIP reads"):
        cut = clip.embed_texts(["x " * read + "house"])
    assert cut.shape == whole.shape
    same = clip.embed_texts(["x " * read])
    torch.testing.assert_close(cut, same)


def test_clip_provenance(clip, clip_folder):
    stated = clip.provenance
    weights = (clip_folder / "model.safetensors").read_bytes()
    assert stated["sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert (stated["scorer"], stated["model"], stated["weights"]) == ("CLIPScorer", "CLIPModel", str(clip_folder))
    assert stated["processor"].startswith("CLIPImageProcessor")
    assert list(stated["versions"]) == ["torch", "transformers"]


def test_clip_folders_that_cannot_serve(clip_folder, tmp_path):
    needed = "give the folder of a CLIP model as transformers saves it"
    with pytest.raises(TideError, match=rf"openai/clip-vit-large-patch14 is not a folder; {needed} .* \(nothing is"):
        CLIPScorer("openai/clip-vit-large-patch14")
    with pytest.raises(TideError, match=r"config\.json does not exist; check the path"):
        CLIPScorer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(TideError, match=f"{tmp_path} holds a model of type 'siglip', not 'clip'; {needed}"):
        CLIPScorer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TideError, match=rf"{tmp_path} holds a model of type None"):
        CLIPScorer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(TideError, match=rf"{tmp_path} holds no model.safetensors; {needed} .*pickles are never loaded"):
        CLIPScorer(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        copy = shutil.copytree(clip_folder, tmp_path / name)
        (copy / name).write_bytes(b"no weights")
        with pytest.raises(TideError, match=rf"{copy}.*\(.*\); (make it again|{needed})") as caught:
            CLIPScorer(copy)
        assert "\n" not in str(caught.value)


def changed(source: Path, folder: Path, name: str, *keys: str, to: object) -> Path:
    """A copy of ``source`` with one entry of one JSON file changed."""
    copy = shutil.copytree(source, folder / "clip")
    data = inner = json.loads((copy / name).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (copy / name).write_text(json.dumps(data))
    return copy


@pytest.mark.parametrize(
    ("name", "keys", "value", "message"),
    [
        ("config.json", ("text_config", "hidden_size"), 10**6, "holds fewer weights than its config.json asks for"),
        ("config.json", ("text_config", "num_hidden_layers"), 10**9, "holds fewer weights than its config.json asks"),
        ("config.json", ("vision_config", "image_size"), 10**5, "holds fewer weights than its config.json asks for"),
        ("config.json", ("vision_config", "patch_size"), 0, "could not be loaded"),
        ("config.json", ("projection_dim",), "12", "could not be loaded"),
        (
            "processor_config.json",
            ("image_processor", "size"),
            {"shortest_edge": 10**7},
            "a size beyond 4096",
        ),
        ("processor_config.json", ("image_processor", "crop_size"), {"height": 8, "width": 8}, "embeds nothing"),
        ("processor_config.json", ("image_processor", "image_std"), [0, 0, 0], "gives embeddings that are not finite"),
    ],
)
def test_clip_folders_that_lie(clip_folder, tmp_path, name, keys, value, message):
    """Found before a model of the size that the config claims is built."""
    copy = changed(clip_folder, tmp_path, name, *keys, to=value)
    with pytest.raises(TideError, match=rf"{copy} .*{message}.*; give the folder of a CLIP model") as caught:
        CLIPScorer(copy)
    assert "\n" not in str(caught.value)


def test_clip_in_several_files(clip, clip_folder, tmp_path):
    from transformers import CLIPModel

    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    (copy / "model.safetensors").unlink()
    CLIPModel.from_pretrained(clip_folder).save_pretrained(copy, max_shard_size="40KB")
    parts = CLIPScorer(copy)
    assert len(parts.provenance["sha256"]) > 1
    torch.testing.assert_close(parts.embed_texts(TEXTS), clip.embed_texts(TEXTS))
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"]["logit_scale"] = "../outside.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TideError, match=r"names \.\./outside\.safetensors, which is not in the folder"):
        CLIPScorer(copy)


def test_clip_without_some_of_its_weights(clip_folder, tmp_path):
    """transformers would draw them at random."""
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    tensors = load_file(copy / "model.safetensors")
    del tensors["text_projection.weight"], tensors["visual_projection.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(TideError, match=f"{copy} lacks 2 weights, such as text_projection.weight; give the folder"):
        CLIPScorer(copy)

"""Data as callers have them: converted to the batches that they mean, or refused in one line."""

from __future__ import annotations

import warnings
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import families
from tests.helpers.image_folders import picture
from tide.activations import collect, prepare
from tide.activations.given import batches_of, items_of
from tide.adapters import adapter_for
from tide.data import open_source
from tide.errors import TideError, TideWarning

N = 3
UINT8 = torch.randint(0, 256, (N, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = UINT8.float() / 127.5 - 1
CAPTIONS = ["a tree", "a house", "a cone"]
PICTURES = [picture(0, (64, 64)), picture(90, (64, 64)), picture(200, (64, 64))]


#: Of three frames: as many as a clip has channels.
CLIPS = torch.randint(0, 256, (2, 3, 3, 32, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(scope="module")
def own(alpha) -> Any:
    return adapter_for(alpha)


def items(adapter: Any, data: Any) -> list[tuple[torch.Tensor, Any]]:
    return list(items_of(batches_of(adapter, data, 2)))


FORMS: dict[str, Any] = {
    "batches": [(IMAGES[:2], CAPTIONS[:2]), (IMAGES[2:], CAPTIONS[2:])],
    "an iterator": iter([(IMAGES, CAPTIONS)]),
    "one batch": (IMAGES, CAPTIONS),
    "single images": [(image, text) for image, text in zip(IMAGES, CAPTIONS, strict=True)],
    "uint8": [(UINT8, CAPTIONS)],
    "uint8, channels last": [(UINT8.permute(0, 2, 3, 1), CAPTIONS)],
    "arrays, channels last": [(UINT8.permute(0, 2, 3, 1).numpy(), CAPTIONS)],
    "float arrays, channels last": [(IMAGES.permute(0, 2, 3, 1).numpy(), CAPTIONS)],
    "a tuple of captions": [(IMAGES, tuple(CAPTIONS))],
    "an array of captions": [(IMAGES, np.array(CAPTIONS))],
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_images(own, form):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = items(own, FORMS[form])
    assert [text for _, text in found] == CAPTIONS
    torch.testing.assert_close(torch.stack([image for image, _ in found]), IMAGES)


@pytest.mark.parametrize(
    "form",
    [
        [(CLIPS.float() / 127.5 - 1, CAPTIONS[:2])],
        [(CLIPS.transpose(1, 2).permute(0, 1, 3, 4, 2), CAPTIONS[:2])],
        [(clip.float() / 127.5 - 1, text) for clip, text in zip(CLIPS, CAPTIONS, strict=False)],
        [(clip.permute(1, 2, 3, 0), text) for clip, text in zip(CLIPS, CAPTIONS, strict=False)],
    ],
    ids=["a batch", "uint8, channels last", "single clips", "single clips of uint8, channels last"],
)
def test_forms_of_the_same_clips(form):
    """A caption that is no list tells a clip from a batch of images: both have four dimensions."""
    found = items(families.adapter("latte"), form)
    assert [text for _, text in found] == CAPTIONS[:2]
    torch.testing.assert_close(torch.stack([clip for clip, _ in found]), CLIPS.float() / 127.5 - 1)


def test_tensors_in_range_are_passed_on_as_they_are(own):
    ((images, text),) = batches_of(own, [(IMAGES, CAPTIONS)], 2)
    assert images is IMAGES
    assert text == CAPTIONS


def test_a_source_is_passed_on_as_it_is(own):
    source = open_source("scenes", own, images=2)
    assert batches_of(own, source, 2) is source


def test_latents_may_have_any_values_and_prompts_may_be_encoded(own):
    latents = torch.full((2, 4, 8, 8), 300.0)
    text = {"encoder_hidden_states": torch.zeros(2, 5, 6)}
    found = items(own, [(latents, text)])
    assert torch.equal(found[1][0], latents[1])
    assert found[1][1]["encoder_hidden_states"].shape == (5, 6)


def test_what_prepare_gave_may_be_given_alone(own):
    (prepared,) = prepare(own, [(IMAGES, CAPTIONS)], max_sequence_length=20)
    assert len(items(own, prepared)) == len(items(own, [prepared])) == N


@pytest.mark.parametrize(
    "form", ["pictures", "pairs", "rows", "a folder", "a folder's name", "batches of pictures", "single pictures"]
)
@pytest.mark.filterwarnings("ignore:.*empty prompt:tide.errors.TideWarning")
def test_pictures_are_taken_in_their_order_at_the_pipelines_size(own, tmp_path, form):
    if form.startswith("a folder"):
        (tmp_path / "photos").mkdir()
        for i, each in enumerate(PICTURES):
            each.save(tmp_path / f"photos/{i}.png")
    data: Any = {
        "pictures": PICTURES,
        "pairs": list(zip(PICTURES, CAPTIONS, strict=True)),
        "rows": [{"image": p, "text": text} for p, text in zip(PICTURES, CAPTIONS, strict=True)],
        "a folder": tmp_path / "photos",
        "a folder's name": str(tmp_path / "photos"),
        "batches of pictures": iter([(PICTURES, CAPTIONS)]),
        "single pictures": iter(zip(PICTURES, CAPTIONS, strict=True)),
    }[form]
    found = items(own, data)
    assert [round((float(image[0, 0, 0]) + 1) * 127.5) for image, _ in found] == [0, 90, 200]
    assert {tuple(image.shape) for image, _ in found} == {(3, 64, 64)}


def test_a_dataset(own):
    datasets = pytest.importorskip("datasets", reason="the datasets library is an extra")
    rows = datasets.Dataset.from_dict({"image": PICTURES, "text": CAPTIONS}).cast_column("image", datasets.Image())
    for data in (rows, rows.to_iterable_dataset()):
        found = items(own, data)
        assert [text for _, text in found] == CAPTIONS
        assert [round((float(image[0, 0, 0]) + 1) * 127.5) for image, _ in found] == [0, 90, 200]


def test_classes_of_a_loader(own):
    assert [text for _, text in items(own, [(IMAGES, torch.tensor([0, 7, 3]))])] == ["0", "7", "3"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (IMAGES, "a Tensor alone has no captions; give batches as (images [B, 3, H, W], captions), or open the data w"),
        (IMAGES.numpy(), "a ndarray alone has no captions"),
        (5, "data of type int hold no batches; give batches as"),
        ({"image": IMAGES, "text": CAPTIONS}, "data of type dict hold no batches"),
        (iter([IMAGES]), "batch 0 of the data is a Tensor; give batches as"),
        (iter([{"image": IMAGES}]), "batch 0 of the data is a dict"),
        ([(IMAGES, CAPTIONS, 3)], "batch 0 of the data is a tuple of Tensor"),
        ([(IMAGES, CAPTIONS[:1])], "batch 0 holds 3 images and 1 caption; give one for each image"),
        ([(IMAGES[:1], CAPTIONS[:2])], "batch 0 holds 1 image and 2 captions; give one for each image"),
        ([(torch.zeros(2, 1, 8, 8), ["a", "b"])], "data have 1 channel; images have 3, latents 4"),
        ([(IMAGES, CAPTIONS[:2])], "batch 0 holds 3 images and 2 captions; give one for each image"),
        ([(IMAGES, CAPTIONS), (IMAGES, "a tree")], "the captions of batch 1 are a str; give a list of one for each"),
        ([(IMAGES, None)], "the captions of batch 0 are a NoneType"),
        ([(IMAGES, [{}, {}, {}])], "caption 0 of batch 0 holds no text"),
        ([(UINT8.float(), CAPTIONS)], "the images of batch 0 have values from 0 to 255, and images are taken in ["),
        ([(IMAGES * 3, CAPTIONS)], "the images of batch 0 have values from -3 to 3, and images are taken in [-1, 1]"),
        ([(IMAGES.double() * float("nan"), CAPTIONS)], "the images of batch 0 have values from nan to nan"),
        ([(UINT8.long(), CAPTIONS)], "the images of batch 0 are int64; give uint8, or floats in [-1, 1]"),
        ([(torch.zeros(2, 5, 8, 8), ["a", "b"])], "data have 5 channels; images have 3, latents 4"),
        ([(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), ["a"])], "data have 4 channels; images have 3, latents 4 and "),
        ([(torch.zeros(8, 8), ["a"])], "the images of batch 0 have the shape [8, 8]"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_could_be_meant_in_two_ways_is_refused(own, data, said):
    with pytest.raises(TideError) as raised:
        items(own, data)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_a_damaged_picture_is_named(own):
    file = BytesIO()
    picture(1).save(file, "PNG")
    damaged = file.getvalue()[:50]
    for images, captions, name in (
        ([picture(0), Image.open(BytesIO(damaged))], ["a", "b"], "image 1 of batch 2"),
        (Image.open(BytesIO(damaged)), "a", "the image of batch 2"),
    ):
        with pytest.raises(TideError, match=f"^{name} is not a readable image"):
            items(own, iter([(IMAGES, CAPTIONS)] * 2 + [(images, captions)]))


def test_floats_that_may_be_zero_to_one_are_said(own):
    with pytest.warns(TideWarning, match=r"the images of batch 0 have values from .* taken to be in \[-1"):
        items(own, [(IMAGES / 2 + 0.5, CAPTIONS)])


def test_uint8_gives_the_activations_of_the_images_in_range(own):
    given = [list(collect(own, [(images, CAPTIONS)], [0], max_sequence_length=20)) for images in (UINT8, IMAGES)]
    assert torch.equal(given[0][0][0].x, given[1][0][0].x)


def test_what_has_from_sample_need_not_be_a_source(own):
    data = SimpleNamespace(from_sample=lambda start: iter([(IMAGES[start:], CAPTIONS[start:])]))
    (batches,) = collect(own, data, [0], start=1, max_sequence_length=20, batch_size=4)
    assert batches[0].sample.unique().tolist() == [1, 2]

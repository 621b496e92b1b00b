"""The atlas's page: one file that asks for nothing, and holds the numbers it was made of."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tide.errors import TideError
from tide.interpretation.atlas import Atlas, ImageText, Label
from tide.interpretation.atlas_page import write_atlas
from tide.pictures import INK, KEPT, LINE, POWER, VEIL, heat_key

N, M, T, N_IMAGES = 20, 3, 4, 9
DEAD = [3, 8]
KINDS = {"latent": "<u4", "dead": "<u4", "image": "<u4", "sprite": "<i4", "concept": "<i4", "map": "u1"}


def made_up(seed: int = 0) -> Atlas:
    """Random numbers of 20 latents, two of them dead, in ascending timesteps; image 5 is nobody's."""
    generator = torch.Generator().manual_seed(seed)
    frequency = torch.rand(T, N, generator=generator)
    images = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8])[torch.rand(N, 8, generator=generator).argsort(1)[:, :M]]
    values = torch.rand(N, M, generator=generator).sort(dim=1, descending=True).values
    frequency[:, DEAD], images[DEAD], values[DEAD] = 0, -1, 0
    images[0, 1:], values[0, 1:] = -1, 0
    return Atlas(
        torch.tensor([100.0, 400.0, 700.0, 999.0]),
        frequency,
        torch.rand(T, N, generator=generator),
        images,
        values,
        torch.randint(0, 256, (N, M, 2, 3), generator=generator).byte(),
        N_IMAGES,
        6,
    )


def flat_images(n: int = N_IMAGES, height: int = 8, width: int = 12) -> list[np.ndarray]:
    """Image i in the grey of i."""
    return [np.full((height, width, 3), 10 * i, dtype=np.uint8) for i in range(n)]


def written(path: Path, atlas: Atlas, images: list[np.ndarray], **options: Any) -> tuple[str, dict[str, Any]]:
    """The page's text, and what its script is given: arrays decoded."""
    write_atlas(path / "atlas.html", atlas, images, **{"title": "Latents", **options})
    page = (path / "atlas.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(text)
    data["arrays"] = {
        name: np.frombuffer(base64.b64decode(each), KINDS.get(name, "<f4")) for name, each in data["arrays"].items()
    }
    return page, data


def tiles(data: dict[str, Any]) -> list[np.ndarray]:
    """The thumbnails cut out of their sheets, as the page does."""
    tile, out = data["tile"], []
    sheets = [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.split(",")[1])))) for s in data["sheets"]]
    for i in range(len(data["arrays"]["image"])):
        sheet, place = divmod(i, tile["perSheet"])
        y, x = (place // tile["columns"]) * tile["pitch"][0], (place % tile["columns"]) * tile["pitch"][1]
        out.append(sheets[sheet][y : y + tile["height"], x : x + tile["width"]])
    return out


class Parsed(HTMLParser):
    """Every tag with its attributes, and the text of the heading and the title."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.setdefault(self.tags[-1][0], data)


def test_the_page_asks_for_nothing(tmp_path):
    page, _ = written(tmp_path, made_up(), flat_images())
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|fetch\(|XMLHttp|import\(", page)
    parsed = Parsed(page)
    assert {name for name, _ in parsed.tags}.isdisjoint({"iframe", "object", "embed", "img", "base"})
    loads = [value for _, attributes in parsed.tags for key in ("src", "href") if (value := attributes.get(key))]
    assert loads == ["data:,"]  # no icon either
    (policy,) = [a["content"] for name, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "{{" not in page.replace("{{ ", "")


def test_the_numbers_come_back(tmp_path):
    atlas = made_up()
    labels = [
        Label("roof", "part", 0.9) if i % 4 == 0 else Label("near", "3d", 0.8) if i == 7 else None for i in range(N)
    ]
    scores = torch.linspace(-1, 1, N)
    scores[5] = torch.nan
    atlas = replace(atlas, labels=tuple(labels), monosemanticity=scores)
    page, data = written(tmp_path, atlas, flat_images())
    alive = [i for i in range(N) if i not in DEAD]
    arrays = data["arrays"]
    assert arrays["latent"].tolist() == alive
    assert arrays["dead"].tolist() == DEAD
    assert data["timesteps"] == [999.0, 700.0, 400.0, 100.0]  # from noise to image
    assert np.array_equal(arrays["frequency"].reshape(-1, T), atlas.frequency.flip(0)[:, alive].T.numpy())
    assert np.array_equal(arrays["mean"].reshape(-1, T), atlas.mean.flip(0)[:, alive].T.numpy())
    assert np.array_equal(arrays["value"].reshape(-1, M), atlas.top_values[alive].numpy())
    assert np.array_equal(arrays["map"].reshape(-1, M, 2, 3), atlas.maps[alive].numpy())
    assert np.array_equal(arrays["monosemanticity"], scores[alive].numpy(), equal_nan=True)
    assert data["map"] == [2, 3]
    numbers = np.append(arrays["image"], -1)[arrays["sprite"]]  # -1 indexes the last, which stands for none
    assert np.array_equal(numbers.reshape(-1, M), atlas.top_images[alive].numpy())
    assert data["concepts"] == [["near", "3d"], ["roof", "part"]]
    named = [data["concepts"][i] if i >= 0 else None for i in arrays["concept"]]
    assert named == [[labels[i].concept, labels[i].level] if labels[i] else None for i in alive]
    given = np.array([labels[i].auroc if labels[i] else np.nan for i in alive], dtype=np.float32)
    assert np.array_equal(arrays["auroc"], given, equal_nan=True)
    assert re.search(r"<dt>latents</dt><dd>20</dd>.*never fire</dt><dd>2</dd>.*images</dt><dd>9<", page, re.DOTALL)


def test_only_the_images_in_use_are_written(tmp_path):
    _, data = written(tmp_path, made_up(), flat_images())
    assert data["arrays"]["image"].tolist() == [0, 1, 2, 3, 4, 6, 7, 8]
    found = tiles(data)
    assert all(
        np.abs(tile.astype(int) - 10 * i).max() <= 1 for i, tile in zip(data["arrays"]["image"], found, strict=True)
    )
    assert found[0].shape == (8, 12, 3)
    assert data["shrunk"] is False


def texts(atlas: Atlas, **captions: str) -> dict[int, ImageText]:
    return {i: ImageText(f"photos/{i}.png", captions.get(f"image_{i}", f"a {i}")) for i in atlas.named_images()}


def test_names_and_captions_are_of_the_images_in_use(tmp_path):
    atlas = made_up()
    atlas = replace(atlas, images=texts(atlas, image_6="  a red\nhouse ", image_7=""))
    _, data = written(tmp_path, atlas, flat_images())
    given = dict(zip(data["arrays"]["image"].tolist(), data["texts"], strict=True))
    assert given[6] == ["photos/6.png", "  a red\nhouse "]
    assert given[7] == ["photos/7.png", ""]
    assert 5 not in given
    _, data = written(tmp_path, atlas, flat_images(), limit=1)
    assert len(data["texts"]) == len(data["arrays"]["image"]) <= M


def test_a_page_without_names_and_captions(tmp_path):
    """As of an atlas of an older version."""
    _, data = written(tmp_path, made_up(), flat_images())
    assert data["texts"] is None


def test_long_captions_are_cut(tmp_path):
    atlas = made_up()
    plain, _ = written(tmp_path, replace(atlas, images=texts(atlas)), flat_images())
    page, data = written(tmp_path, replace(atlas, images=texts(atlas, image_0="x" * 100_000)), flat_images())
    assert data["texts"][0][1] == "x" * 999 + "\N{HORIZONTAL ELLIPSIS}"
    assert len(page) < len(plain) + 1100


@pytest.mark.parametrize(
    "odd",
    [
        "</script><script>alert(1)</script>",
        "<!-- <script>",
        "\"'`&amp;{{title}}",
        "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
        "\N{FAMILY} \N{LINE SEPARATOR} \x00",
        "\udcff",
    ],
    ids=["ends the script", "comment", "quotes", "right to left", "separators", "a byte that is not UTF-8"],
)
def test_odd_names_and_captions_stay_data(tmp_path, odd):
    atlas = made_up()
    images = {i: ImageText(odd, odd) for i in atlas.named_images()}
    page, data = written(tmp_path, replace(atlas, images=images), flat_images())
    assert data["texts"] == [[odd, odd]] * len(images)
    assert page.count("</script>") == 2
    assert [name for name, _ in Parsed(page).tags].count("script") == 2


def test_the_page_draws_heat_as_the_library_does(tmp_path):
    page, data = written(tmp_path, made_up(), flat_images())
    assert data["veil"] == {"grey": VEIL, "kept": KEPT, "power": POWER, "line": LINE, "ink": list(INK)}
    assert heat_key() in page


@pytest.mark.parametrize("n", [64, 65, 200])
def test_many_images_fill_several_sheets(tmp_path, n):
    rng = np.random.default_rng(0)
    images = [np.full((5, 7, 3), rng.integers(256, size=3), dtype=np.uint8) for _ in range(n)]
    top = torch.arange(n).repeat(2)[: 2 * n // M * M].view(-1, M)
    size = len(top)
    atlas = Atlas(
        torch.tensor([9.0]),
        torch.ones(1, size),
        torch.ones(1, size),
        top,
        torch.ones(size, M),
        torch.zeros(size, M, 1, 1).byte(),
        n,
        1,
    )
    _, data = written(tmp_path, atlas, images)
    assert len(data["sheets"]) == -(-n // 64)
    for tile, image in zip(tiles(data), images, strict=True):
        assert np.abs(tile.astype(int) - image).max() <= 6  # no neighbour bleeds in where JPEG is smaller


def test_large_images_shrink_and_the_smaller_encoding_is_taken(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(256, size=(120, 240, 3), dtype=np.uint8) for _ in range(N_IMAGES)]
    for images, kind in ((noise, "jpeg"), (flat_images(height=120, width=240), "png")):
        _, data = written(tmp_path, made_up(), images)
        assert (data["tile"]["height"], data["tile"]["width"]) == (48, 96)
        assert data["shrunk"] is True
        assert all(sheet.startswith(f"data:image/{kind};base64,") for sheet in data["sheets"])


def test_names_cannot_leave_their_place(tmp_path):
    """A title that is markup or a placeholder, and a concept that would end the script."""
    title, concept, level = '<img src="x">&{{data}}', "</script><script>alert(1)</script>", "<b>&\u2028"
    atlas = replace(made_up(), labels=(Label(concept, level, 0.9), *[None] * (N - 1)))
    page, data = written(tmp_path, atlas, flat_images(), title=title, note="<i>&")
    assert data["concepts"] == [[concept, level]]
    assert page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    parsed = Parsed(page)
    assert [name for name, _ in parsed.tags if name in ("img", "b", "i")] == ["i"] * 3  # keys of the heat
    assert parsed.texts["h1"] == parsed.texts["title"] == title
    assert "&lt;i&gt;&amp;</p>" in page


def test_the_most_active_latents_stay(tmp_path):
    atlas = made_up()
    page, data = written(tmp_path, atlas, flat_images(), limit=5, note="Of scenes.")
    assert data["arrays"]["latent"].tolist() == sorted(atlas.activity.topk(5).indices.tolist())
    assert data["arrays"]["map"].size == 5 * M * 6
    assert data["n"] == N
    assert "The page holds the 5 most active of the 18 latents that fire. Of scenes.</p>" in page
    page, data = written(tmp_path, atlas, flat_images(), limit=18)
    assert len(data["arrays"]["latent"]) == 18
    assert "most active of" not in page.split("<script")[0]


def test_the_atlas_brings_its_own_labels_and_scores(tmp_path):
    labels = (*[None] * (N - 1), Label("roof", "part", 0.9))
    atlas = replace(made_up(), labels=labels, monosemanticity=torch.zeros(N))
    _, data = written(tmp_path, atlas, flat_images())
    assert data["concepts"] == [["roof", "part"]]
    assert not data["arrays"]["monosemanticity"].any()
    _, data = written(tmp_path, made_up(), flat_images())
    assert data["arrays"].keys().isdisjoint({"concept", "auroc", "monosemanticity"})


def test_bad_input(tmp_path):
    def refused(
        message: str, atlas: Atlas | None = None, images: list[np.ndarray] | None = None, **options: Any
    ) -> None:
        with pytest.raises(TideError, match=message):
            written(tmp_path, atlas or made_up(), flat_images() if images is None else images, **options)

    atlas = made_up()
    refused("a page of 0 latents shows nothing; give a limit of at least 1", limit=0)
    refused("the atlas names image 8 and 3 images are given; give all of them", images=flat_images(3))
    refused("differ in size; crop them to one size", images=[*flat_images(8), *flat_images(1, height=9)])
    refused(
        "none of the 20 latents fires on these images; train the SAE for longer",
        replace(atlas, frequency=torch.zeros(T, N), top_images=torch.full((N, M), -1)),
    )
    assert not list(tmp_path.iterdir())

"""The report: whole, self-contained, escaped, and short of what was not measured."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tide.charts import INKS
from tide.errors import TideError
from tide.scenes.judge import NO_OBJECT
from tide.scenes.render import render
from tide.scenes.scene import Scene
from tide.studies.compare import LEVELS, equal_preservation
from tide.studies.report import EditStrip, FirstPicture, HeatMaps, loss_figures, trade_off, write_report
from tide.studies.report_tables import MINUS, MISSING, Cell, Column, fixed, table

ANCHORS = ("rebuild", "time", "loss", "where", "concepts", "edits", "trade-off", "training", "made")
VOID = {"meta", "img", "br", "path", "i"}
RED_HOUSE = Scene("house", "red", "near", "with", "grass", seed=3)


def picture(scene: Scene) -> np.ndarray:
    return (255 * render(scene).image).round().astype(np.uint8)


def verdict(scene: Scene, *, valid: bool = True) -> dict:
    named = {name: scene[name] for name in ("class", "colour", "depth", "shadow", "ground")}
    return {**named, "class": scene.cls if valid else NO_OBJECT, "valid": valid}


def strip(**changes: object) -> EditStrip:
    """Red to blue: not yet at 0.5, clean at 1, at the cost of the depth at 2, wreckage at 4."""
    blue = RED_HOUSE.changed("colour", "blue")
    scenes = [RED_HOUSE, RED_HOUSE, blue, blue.changed("depth", "far"), blue]
    values: dict = {
        "title": "red to blue",
        "prompt": RED_HOUSE.caption(),
        "attribute": "colour",
        "target": "blue",
        "strengths": [0.0, 0.5, 1.0, 2.0, 4.0],
        "images": [picture(s) for s in scenes],
        "verdicts": [verdict(s, valid=i < 4) for i, s in enumerate(scenes)],
        "ceiling": picture(blue),
    }
    return EditStrip(**{**values, **changes})


def heat(concept: str = "roof") -> HeatMaps:
    shown, other = render(RED_HOUSE), RED_HOUSE.changed("class", "sphere")
    truth = [shown.masks["roof"], np.zeros((64, 64), bool)]
    maps = [truth[0] * 3.0, np.full((64, 64), 0.2)]
    return HeatMaps(concept, "part", 1204, 0.97, 0.61, [picture(RED_HOUSE), picture(other)], truth, maps)


def history(n: int = 30) -> list[dict]:
    names = ("loss", "mse", "cosine", "temporal", "sparsity", "lr", "silent")
    return [{"step": i, "k": 154, "revived": i, **{name: 0.5 / (1 + i) for name in names}} for i in range(n)]


def full_metrics() -> dict:
    bins = {f"{i}00-{i + 1}00": {"mse_normalised": 0.1, "cosine": 0.9, "explained_variance": 0.8} for i in range(3)}
    model = {"train_mse": 0.021, "val_mse": 0.033, "train_cosine": 0.98, "val_cosine": 0.97, "explained_variance": 0.9}
    baseline = {"val_mse": 0.21, "val_cosine": 0.91, "explained_variance": 0.7, "timestep": bins}
    concept = {"latent": 7, "auroc": 0.97, "iou": 0.6, "neuron": 3, "neuron_auroc": 0.8, "neuron_iou": 0.3}
    share = {"success": 0.83, "preserved": 0.76, "both": 0.68}
    steps = {"951": 0.01, "501": 0.02, "1": 0.3}
    return {
        "headline": "TIDE turns a red house blue",
        "sizes": {"d_model": 192, "n_latents": 3072, "k": 154, "block": 6, "n_blocks": 8},
        "models": {
            "sae": {**model, "l0": 154, "dead": 0.04, "timestep": bins},
            "tide": {**model, "val_mse": 0.028, "l0": 154, "dead": 0.01, "timestep": bins},
            **{name: baseline for name in ("mean", "pca_k", "pca_k/4")},
        },
        "diffusion_loss": {
            "clean": 0.05,
            "reconstructed": 0.052,
            "ablated": 0.4,
            "recovered": 0.994,
            "ratio": 1.04,
            "variants": {"tide": {"loss": 0.052, "recovered": 0.994}, "mean": {"loss": 0.3, "recovered": 0.286}},
            "timestep": {name: steps for name in ("clean", "tide", "sae", "ablated")},
        },
        "concepts": {"roof": {**concept, "level": "part", "recipe_auroc": 0.7}, "near": {**concept, "level": "3d"}},
        "levels": {name: {k: v for k, v in concept.items() if isinstance(v, float)} for name in ("3d", "part")},
        "edits": {"colour": {**share, "valid": 0.97, "images": 120, "interval": {"success": [0.75, 0.9]}}},
        "trade_off": {name: [{"factor": 1.0, **share}] for name in ("towards", "steer towards", "swap", "steer")}
        | {"prompt": share},
        "seconds": 312.4,
        "stages": {"collect": 20.1, "train": 151.7},
        "config": {"seed": 11, "loss": {"mse": 1.0, "s_target": None}},
        "versions": {"torch": "2.13.0"},
        "machine": "2 cores, no GPU",
    }


class Balance(HTMLParser):
    """Collects sections and images and checks that every element that opens closes again."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "section":
            self.sections.append(named["id"] or "")
        if tag != "a":
            self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def decoded(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


def written(tmp_path: Path, metrics: dict, **parts: object) -> tuple[str, Balance]:
    path = tmp_path / "report.html"
    inputs: dict = {"heat_maps": [], "strips": [], "histories": {}, **parts}
    write_report(path, metrics, **inputs)
    text = path.read_text(encoding="utf-8")
    page = Balance(text)
    assert page.open == []
    return text, page


def test_everything_is_there_and_nothing_is_fetched(tmp_path):
    histories = {"sae": history(), "tide": history()}
    text, page = written(tmp_path, full_metrics(), heat_maps=[heat()], strips=[strip()], histories=histories)
    assert tuple(page.sections) == ANCHORS
    assert page.loaded
    kinds = re.compile(r"data:image/(png|svg\+xml);base64,")
    assert all(kinds.match(address) for address in page.loaded)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe", text)
    for chart in (decoded(address).decode() for address in page.loaded if "svg" in address[:20]):
        assert not re.search(r"(href|src)=\"(?!#)|url\((?!#)|@import|<script", chart)
    assert "TIDE turns a red house blue" in page.text
    assert "loss.mse" in page.text  # nested options by their dotted names


def test_charts_have_the_colours_of_light_and_dark_pages(tmp_path):
    _, page = written(tmp_path, full_metrics())
    charts = [decoded(address).decode() for address in page.loaded if "svg" in address[:20]]
    assert len(charts) == 6
    for chart in charts:
        drawn = chart.partition("</style>")[2]
        assert "var(--muted)" in drawn
        assert not any(light in drawn for light, _ in INKS.values())
        assert all(dark in chart.partition("prefers-color-scheme: dark")[2] for _, dark in INKS.values())
        assert "#000000" not in drawn  # black would vanish on a dark page


def test_every_image_says_what_it_shows(tmp_path):
    text, _ = written(tmp_path, full_metrics(), heat_maps=[heat()], strips=[strip()])
    images = re.findall(r"<img[^>]*>", text)
    assert images
    assert all(re.search(r'alt="[^"]{3,}"', image) for image in images)


def test_outlines_are_at_the_scale_of_the_pictures(tmp_path):
    """Overlays have twice the pixels of the masks."""
    text, page = written(tmp_path, {}, heat_maps=[heat()])
    assert re.findall(r'<svg viewBox="([^"]*)"', text) == ["0 0 64 64"] * 2
    sizes = [Image.open(io.BytesIO(decoded(address))).size for address in page.loaded]
    assert sizes == [(64, 64), (128, 128)] * 2


def test_pictures_survive_bit_for_bit(tmp_path):
    shown = strip()
    _, page = written(tmp_path, {}, strips=[shown])
    first = Image.open(io.BytesIO(decoded(page.loaded[0])))
    np.testing.assert_array_equal(np.asarray(first), shown.images[0])


@pytest.mark.parametrize(
    ("key", "gone"),
    [
        ("models", {"rebuild", "time"}),
        ("diffusion_loss", {"loss"}),
        ("trade_off", {"trade-off"}),
        ("edits", set()),  # the strips remain
        ("levels", set()),  # the table of concepts remains
        ("sizes", set()),
        ("headline", set()),
    ],
)
@pytest.mark.parametrize("empty", ["missing", "none", "empty"])
def test_a_missing_part_is_left_out(tmp_path, key, gone, empty):
    metrics = full_metrics()
    del metrics[key]
    metrics |= {"missing": {}, "none": {key: None}, "empty": {key: {}}}[empty]
    histories = {"tide": history()}
    _, page = written(tmp_path, metrics, heat_maps=[heat()], strips=[strip()], histories=histories)
    assert set(page.sections) == set(ANCHORS) - gone


def test_no_figures_at_all(tmp_path):
    _, page = written(tmp_path, {})
    assert page.sections == []


def test_markup_in_words_is_shown_and_not_obeyed(tmp_path):
    evil = '<b>x</b> & "y" \'<img src=https://example.org/a.png>'
    metrics = full_metrics()
    metrics |= {"headline": evil, "machine": evil}
    metrics |= {"config": {evil: evil}, "versions": {evil: evil}, "stages": {evil: 1}}
    metrics["concepts"][evil] = {"level": evil, "auroc": 0.5}
    metrics["levels"][evil] = {"auroc": 0.6}
    for part, known in (("models", "tide"), ("edits", "colour"), ("trade_off", "towards")):
        metrics[part][evil] = metrics[part][known]
    odd = strip(title=evil, prompt=evil, target=evil, verdicts=[{**verdict(RED_HOUSE), "colour": evil}] * 5)
    parts = {"heat_maps": [heat(evil)], "strips": [odd], "histories": {"tide": history(), evil: history()}}
    text, page = written(tmp_path, metrics, **parts)
    assert "<b>x" not in text
    assert all(address.startswith("data:") for address in page.loaded)
    assert evil in page.text


@pytest.mark.parametrize("unknown", [math.nan, math.inf, None, "n/a"])
def test_unknown_figures_are_dashes(tmp_path, unknown):
    def blank(value: object) -> object:
        if isinstance(value, dict):
            return {k: blank(v) for k, v in value.items()}
        if isinstance(value, list):
            return [blank(v) for v in value]
        return unknown if isinstance(value, float) else value

    metrics = full_metrics()
    metrics["models"]["tide"]["val_mse"] = unknown
    text, page = written(tmp_path, metrics)
    assert f"<td>{MISSING}</td>" in text
    blanked = {key: blank(value) for key, value in metrics.items() if key != "trade_off"}
    blanked["edits"]["colour"].pop("interval")
    _, page = written(tmp_path, blanked, histories={"tide": [blank(e) for e in history()]})
    assert not re.search(r"\b(nan|inf)\b", page.text)


def test_the_old_report_stays_when_writing_fails(tmp_path, monkeypatch):
    written(tmp_path, {"headline": "first"})

    def full_disk(self: Path, text: str, **_: object) -> int:
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(TideError, match="no space left"):
        write_report(tmp_path / "report.html", {"headline": "second"}, heat_maps=[], strips=[], histories={})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "first" in (tmp_path / "report.html").read_text()


def verdict_lists(tmp_path: Path, shown: EditStrip) -> list[str]:
    text, _ = written(tmp_path, {}, strips=[shown])
    return re.findall(r'<ul class="verdict">(.*?)</ul>', text, re.DOTALL)


def test_verdicts_tell_reached_lost_and_wrecked(tmp_path):
    lists = verdict_lists(tmp_path, strip())
    assert "<b>" not in lists[1]
    assert "<b>blue</b>" in lists[2]
    assert "<s>" not in lists[2]
    assert "<s>near</s> far" in lists[3]
    assert NO_OBJECT in lists[4]
    assert "blue" not in lists[4]  # wreckage is never counted as a change


def opening(tmp_path: Path, **changes: object) -> tuple[str, list[str], Balance]:
    """The opening picture's markup, and under each image what the judge reads."""
    first = FirstPicture(**{"strip": strip(), "chosen": 2, "margin": 1.5, "tried": 72, **changes})
    text, page = written(tmp_path, {}, strips=[strip(title="another")], first=first)
    (figure,) = re.findall(r'<figure class="hero">.*?(?=<p>A diffusion)', text, re.DOTALL)
    return figure, re.findall(r'<ul class="verdict">(.*?)</ul>', figure, re.DOTALL), page


def test_the_first_picture_tells_how_it_was_chosen_and_what_the_judge_reads(tmp_path):
    figure, lists, page = opening(tmp_path)
    assert "<b>red to blue</b>" in figure
    assert "Of 72 edits tried on development prompts" in page.text
    assert "even it does not reach that" not in page.text
    (chosen,) = re.findall(r'class="chosen">.*?<div class="strength">(.*?)</div>', figure, re.DOTALL)
    assert chosen == "strength 1 (chosen)"
    assert [re.sub(r"<li>|</li>|\s+", " ", each).split() for each in lists[:2]] == [["red"], ["red"]]
    assert lists[2].split() == ["<li><b>blue</b></li>"]
    assert "<s>near</s> far" in lists[3]
    assert NO_OBJECT in lists[4]


def test_a_first_picture_that_failed_says_so(tmp_path):
    _, _, page = opening(tmp_path, margin=-0.5)
    assert "and even it does not reach that" in page.text


def test_a_report_without_a_first_picture(tmp_path):
    text, _ = written(tmp_path, {}, strips=[strip()])
    assert 'class="hero"' not in text


def test_losses_are_drawn_as_ratios_to_the_untouched_model():
    steps = {"clean": {"951": 0.02, "1": 0.5}, "tide": {"951": 0.04, "1": 0.5}, "ablated": {"951": 0.4, "1": 1.0}}
    found = loss_figures({"diffusion_loss": {"clean": 0.1, "timestep": steps}})
    assert found["chart"].alt == "Denoising loss by timestep: TIDE"
    assert "relative to the untouched model's" in found["chart"].caption


def test_bars_are_listed_with_their_verdicts(tmp_path):
    text, page = written(tmp_path, {"verdicts": ["met     loss recovered: 0.99", "MISSED  80 % changed"]})
    assert page.sections == ["verdicts"]
    assert "<li><b>met</b>loss recovered: 0.99</li>" in text
    assert '<li class="missed"><b>missed</b>80 % changed</li>' in text


def test_levels_of_preservation_and_every_setting_tried_are_shown():
    interval = {"success": [0.8, 1.0]}
    curve = [{"factor": 2, "success": 0.9, "preserved": 0.9, "both": 0.8, "interval": interval}]
    other = [{"factor": 1, "success": 0.6, "preserved": 0.8, "both": 0.5, "interval": interval}]
    curves = {"contrast": curve, "steer contrast": other}
    tried = [{"method": "contrast", "steps": [0.3, 1.0], **curve[0]}]
    found = trade_off({"trade_off": curves, "equal_preservation": equal_preservation(curves), "tried": tried})
    assert found is not None
    assert found["levels"].heads == ["contrast of latents", "contrast, raw"]
    assert len(found["levels"].rows) == len(LEVELS)
    assert found["levels"].rows[1].cells[0] == Cell("90 %", note="80 to 100")
    assert [row.label for row in found["tried"].rows] == ["contrast of latents, 30 % to 100 %, 2"]
    assert trade_off({}) is None


def test_the_best_figure_is_marked_and_ties_are_shared():
    def cells(*values: float) -> list[Cell]:
        return Column("error", "error", better="low").cells([{"error": value} for value in values])

    assert cells(0.12, 0.1, math.nan) == [Cell("0.120"), Cell("0.100", best=True), Cell(MISSING)]
    assert cells(0.1, 0.1 + 1e-9) == [Cell("0.100", best=True)] * 2
    assert cells(0.1) == [Cell("0.100")]  # nothing to be better than
    assert table("", [("a", {})], [Column("nothing", "nothing")]) is None


def test_the_best_figure_is_bold_on_the_page(tmp_path):
    text, _ = written(tmp_path, full_metrics())
    assert "<b>0.0280</b>" in text
    assert "<b>0.0330</b>" not in text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.0355, 0.95], ["0.0355", "0.9500"]),
        ([0.0051, 0.95], ["0.0051", "0.9500"]),  # two digits rather than five decimals
        ([2e-5, 3e-4], ["0.000020", "0.000300"]),
        ([1234.5, None], ["1,234", MISSING]),
        ([-0.25, 0.5], [f"{MINUS}0.250", "0.500"]),
    ],
)
def test_figures_of_a_column_share_their_decimals(values, texts):
    write = fixed(values)
    assert [write(v) for v in values] == texts

"""The page of a layer sweep: one file that asks for nothing, its figures, and what it says of them."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser

import pytest

from tests.helpers.sweeps import small_sweep
from tide.charts import INKS
from tide.evaluation.sweep_page import write_sweep
from tide.evaluation.sweep_wording import sweep_sentences, sweep_text

VOID = {"meta", "img", "br", "link"}


@pytest.fixture(scope="module")
def found(adapter) -> dict:
    """With figures that sentences can be checked by: block 2 is reconstructed worse, and tells every concept."""
    found = copy.deepcopy(small_sweep(adapter))
    for block, variance, share, area in (("2", 0.6, 0.7, 0.9), ("6", 0.8, 0.9, 0.7)):
        figures = found["blocks"][block]
        figures["fit"]["tide"]["explained_variance"] = variance
        figures["loss"]["tide"]["recovered"] = share
        for name, probes in figures["probes"].items():
            value = {"tide": area, "neurons": 0.8, "pca": area, "random": 0.5}[name]
            probes["5"] = {**probes["5"], "auroc": value, "errors": {"auroc": 0.01}}
            probes["5"]["concepts"] = {c: value + 0.001 * i for i, c in enumerate(probes["5"]["concepts"])}
    for part, name, figure, mean in (("fit", "tide", "explained_variance", 0.7), ("loss", "tide", "recovered", 0.8)):
        found["average"][part][name][figure] = {"mean": mean, "spread": 0.1, "blocks": 2}
    return found


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.asked: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.asked += [given[name] for name in ("src", "href") if name in given]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def written(path, found, **options) -> str:
    write_sweep(path / "sweep.html", found, **options)
    return (path / "sweep.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_for_nothing(found, tmp_path):
    page = written(tmp_path, found, title="Two blocks")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert {"depth", "time", "concepts", "blocks", "average", "made"} <= set(tags.ids)
    assert all(each.startswith("data:") for each in tags.asked)
    assert "default-src 'none'" in page
    for word in ("nan", "None", "inf"):
        assert not re.search(rf">[^<]*\b{word}\b", page.split("<script>")[0])


def test_titles_are_escaped(found, tmp_path):
    assert "<b>&" not in written(tmp_path, found, title="<b>&", note="<b>&").replace("&lt;b&gt;&amp;", "")


def test_every_block_and_timestep_has_a_cell(found, tmp_path):
    page = written(tmp_path, found)
    for block in ("2", "6"):
        for t in found["timesteps"]:
            assert f'title="block {block}, timestep {t:g}: ' in page
        value = found["blocks"][block]["fit"]["tide"]["explained_variance"]
        assert f'data-value="{value:.9g}">{100 * value:.1f}' in page
    for concept in found["concepts"]:
        assert f'title="{concept}, block 6: ' in page


def test_charts_are_in_colours_of_light_and_dark_pages(found, tmp_path):
    import base64

    page = written(tmp_path, found)
    charts = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(charts) == 4
    for chart in charts:
        text = base64.b64decode(chart).decode()
        assert "prefers-color-scheme: dark" in text
        assert text.count(INKS["blue"][0]) == 1  # where its variable is set


def test_a_single_block_without_concepts(adapter, found, tmp_path):
    one = {**found, "blocks": {"6": {**found["blocks"]["6"], "probes": None}}, "concepts": None}
    one["average"] = {**found["average"], "probes": None}
    page = written(tmp_path, one)
    assert 'id="concepts"' not in page
    assert "Averages over the block." in page
    assert len(sweep_sentences({**one, "left_out": None})) == 2


def test_sentences_are_of_the_figures(found):
    fit, loss, concepts, against, *_ = sweep_sentences(found)
    assert "the latents explain 70.0% of the variance on average over 2 blocks, least on block 2 (60.0%)" in fit
    assert loss.startswith("Of the loss that zeroing a block adds, 80.0% is recovered, least on block 2 (70.0%)")
    assert "concepts on block 2 best, with a mean AUROC of 0.900" in concepts
    assert against == (
        "Of 2 blocks, they beat probes on raw neurons in 1 and lose in 1, principal components in 0 and lose in 0, a "
        "random autoencoder's latents in 2 and lose in 0 (95 % intervals over the concepts)."
    )


def test_what_is_not_known_is_said(found):
    unknown = copy.deepcopy(found)
    for block in unknown["blocks"].values():
        for of in block["loss"].values():
            of["recovered"] = None
    assert sweep_sentences(unknown)[1].startswith("Zeroing these blocks adds no loss beyond its sampling error")


def test_as_text(found):
    header, *rows = sweep_text(found).splitlines()
    assert header.split()[:2] == ["variance", "cosine"]
    assert [row.split("  ")[0] for row in rows] == ["block 2", "block 6", "mean"]

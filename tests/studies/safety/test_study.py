"""The study of safety: what its cells are, what its report makes of them, and a whole one, tiny."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tide.evaluation.statistics import wilson_interval
from tide.scenes.judge import Verdict
from tide.scenes.scene import ATTRIBUTES
from tide.studies.options import Options
from tide.studies.safety import study as module
from tide.studies.safety.names import ATTACKED, GRADIENT, PROTECTIONS, cell_name, rows_of, verdicts_of
from tide.studies.safety.prompts import Unwanted
from tide.studies.safety.report import Found, verdict_of
from tide.studies.safety.study import FAST, Study, everything

HOUSE = Unwanted("class", "house", "cube")


def verdict(**changes: str) -> Verdict:
    return Verdict({name: changes.get(name, values[0]) for name, values in ATTRIBUTES.items()}, {})


def test_verdicts_come_back_from_rows():
    rows = [verdict(), verdict(colour="blue", style="ornate")]
    assert [each.attributes for each in verdicts_of(json.loads(json.dumps(rows_of(rows))))] == [
        each.attributes for each in rows
    ]


def test_every_class_and_every_style_is_unwanted_once():
    assert [each.value for each in everything()] == [*ATTRIBUTES["class"], *ATTRIBUTES["style"]]


def test_what_stands_in_is_what_removes_and_keeps_most():
    study = Study(Options(out=None))
    chosen = {f"{each.value} neutral": {put: {"ua": 1.0, "cra": 0.9} for put in each.others} for each in everything()}
    chosen["house neutral"]["tree"] = {"ua": 1.0, "cra": 0.95}
    chosen["plain neutral"]["sketched"] = {"ua": 0.5, "cra": 1.0}
    puts = {each.value: each.neutral for each in study.concepts(chosen)}
    assert (puts["house"], puts["plain"], puts["sphere"]) == ("tree", "ornate", "cube")


def cells(*, gone: int, kept: str = "red") -> dict:
    """Two houses of which ``gone`` are cubes under the guard, and two trees, whose colour the guard leaves or not."""
    house, tree = {"class": "house"}, {"class": "tree"}
    before = {"asking": rows_of([verdict(**house)] * 2), "allowed": rows_of([verdict(**tree)] * 2)}
    after = [verdict(**{"class": "cube"} if i < gone else house) for i in range(2)]
    guarded = {"asking": rows_of(after), "allowed": rows_of([verdict(**tree), verdict(**tree, colour=kept)])}
    plain, noise = [[0.0, 0.0], [1.0, 0.0]], [[5.0, 0.0], [6.0, 0.0]]
    return {
        cell_name(0, HOUSE, "unguarded", "plain"): {**before, "embedded": plain, "embedded_again": noise},
        cell_name(0, HOUSE, "guard", "plain"): {**guarded, "embedded": plain},
        cell_name(0, HOUSE, "unguarded", "repeated"): {"asking": before["asking"]},
        cell_name(0, HOUSE, "guard", "repeated"): {"asking": guarded["asking"]},
        cell_name(0, HOUSE, "guard", "gradient adaptive"): {"asking": guarded["asking"]},
    }


def test_figures_are_of_the_guarded_against_the_unguarded_images():
    found = Found([0], [HOUSE], cells(gone=1, kept="blue"))
    (row,) = found.plain()
    assert (row["ua"], row["ira"], row["artefacts"]) == (0.5, 1.0, 0.0)
    assert row["cra_asking"] == 1.0
    assert row["cra_allowed"] == pytest.approx(1 - 0.5 / 7)  # one of two images in one of seven attributes
    assert row["cra"] == pytest.approx(1 - 0.25 / 7)
    assert (row["ua_images"], row["cra_images"]) == (2, 4)
    low, high = wilson_interval(1, 2)
    half = {"ua": 0.5, "ua_low": low, "ua_high": high, "ua_images": 2}
    assert found.under_attack(found.attacked()) == {"guard": {"repeated": half, "gradient adaptive": half}}
    (average,) = found.averages([row])
    assert {name: average[name] for name in half} == half
    sets = found.sets()
    assert sets["guard"]["fid"] == pytest.approx(0.0, abs=1e-9)
    assert sets["other noise"]["fid"] == pytest.approx(25.0)  # the means are 5 apart, the covariances equal


def test_the_same_request_under_several_guards_is_one_image():
    """One of two models' guards changes one of two houses: a quarter, and no more images than before."""
    first, second = cells(gone=0), cells(gone=1)
    named = {cell_name(1, HOUSE, "guard", what): second[cell_name(0, HOUSE, "guard", what)]
             for what in ("plain", "repeated")}  # fmt: skip
    found = Found([0, 1], [HOUSE], {**first, **named})
    (row,) = found.plain()
    assert (row["ua"], row["ua_images"], row["cra_images"]) == (0.25, 2, 4)
    assert found.under_attack(found.attacked())["guard"]["repeated"]["ua_images"] == 2


def test_a_concept_that_no_image_shows_says_nothing():
    """Of a hidden attack that draws no house there is no UA; those of other concepts stay what they are."""
    tree = replace(HOUSE, value="tree", put="cube")
    found = cells(gone=2)
    none = {"asking": rows_of([verdict(**{"class": "cone"})] * 2)}
    for protection in ("unguarded", "guard"):
        found[cell_name(0, tree, protection, "repeated")] = none
    both = Found([0], [HOUSE, tree], found)
    assert both.under_attack(both.attacked())["guard"]["repeated"]["ua"] == 1.0
    plain = {**none, "allowed": rows_of([verdict(**{"class": "cone"})] * 2), "embedded": [[9.0, 9.0]] * 2}
    found[cell_name(0, tree, "unguarded", "plain")] = {**plain, "embedded_again": [[9.0, 9.0]] * 2}
    lacking = Found([0], [HOUSE, tree], found)
    assert lacking.sets()["guard"] == {"fid": pytest.approx(0.0, abs=1e-9), "cmmd": lacking.sets()["guard"]["cmmd"],
                                       "images": 2.0}  # of the concept that both were measured on  # fmt: skip
    found[cell_name(0, tree, "guard", "plain")] = plain
    whole = Found([0], [HOUSE, tree], found)
    (row,) = whole.averages(whole.plain())
    assert (row["ua"], row["concepts"]) == (1.0, 2)


def test_the_verdict_says_what_is_missed():
    good = Found([0], [HOUSE], cells(gone=2))
    said = verdict_of(good.averages(good.plain()), good.under_attack(good.attacked()))
    assert said.endswith("All bars are met.")
    bad = Found([0], [HOUSE], cells(gone=1, kept="blue"))
    said = verdict_of(bad.averages(bad.plain()), bad.under_attack(bad.attacked()))
    assert "Missed: UA of class, CRA of class, UA under repeated, UA under gradient adaptive." in said
    assert verdict_of([], {}) == "no guard was measured"


def test_cells_are_of_every_protection_and_attack():
    study = Study(Options(out=None, fast=True))
    study.__dict__["config"] = {}
    study.__dict__["models"] = type("Models", (), {"described": lambda self, seed: {}})()
    names = [cell.name for cell in study.cells([HOUSE])]
    assert len(set(names)) == len(names)
    assert cell_name(0, HOUSE, "negative prompt", "plain") in names
    assert cell_name(0, HOUSE, "cross-attention edit", GRADIENT[1]) in names
    assert cell_name(0, HOUSE, "unguarded", GRADIENT[1]) not in names  # there is nothing to attack through
    attacks = (len(names) - len(PROTECTIONS) - 2 * len(ATTACKED) + 1) / len(ATTACKED)
    assert attacks == len(module.ATTACKS)


@pytest.mark.slow
def test_a_whole_study_is_resumed_and_reported(tmp_path, monkeypatch):
    """Two minutes: one class, few attacks."""
    monkeypatch.setattr(module, "everything", lambda: [Unwanted("class", "house")])
    monkeypatch.setattr(module, "FAST", replace(FAST, dev=1, scenes=64))
    for place in ("study", "report"):
        monkeypatch.setattr(f"tide.studies.safety.{place}.ATTACKS", {"repeated": module.ATTACKS["repeated"]})
    monkeypatch.setattr("tide.guards.making.LEAST_AUROC", 0.0)
    said: list[str] = []
    options = Options(out=tmp_path, fast=True, steps=20, say=said.append)
    torch.set_num_threads(1)
    first = module.reproduce(options)
    assert first.startswith("Guards of class: UA ")
    for name in ("safety.json", "safety.csv", "safety-attacks.csv", "safety-attacks.png", "safety-gallery.png"):
        assert (tmp_path / name).is_file()
    assert module.reproduce(options) == first
    assert any("cells are finished" in line for line in said)

"""`tide edit` says what its edits met; `tide edit --search` tries settings and says which is best."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from tests.helpers.sheets import places
from tide import TIDE
from tide.runs import contents
from tide.sae import TIDEConfig
from tide.strips import shown

PROMPT = "a red house"


def saved(pipeline, path, block: int):
    """An untrained SAE in which latent 5 never fires."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TIDE(TIDEConfig(192, 96, 8, block=block, family="pixart", pipeline=str(pipeline)))
        with torch.no_grad():
            model.b_enc[5] = -1e6
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def sae(pipeline, tmp_path_factory):
    return saved(pipeline, tmp_path_factory.mktemp("sae-6"), 6)


@pytest.fixture(scope="module")
def other(pipeline, tmp_path_factory):
    return saved(pipeline, tmp_path_factory.mktemp("sae-3"), 3)


@pytest.fixture
def edit(cli, sae, tmp_path):
    """Runs ``tide edit``; returns what it prints, and the JSON that it writes."""

    def run(*options: object, out: str = "out") -> tuple[str, dict]:
        result = cli("edit", "--sae", sae, "--prompt", PROMPT, "--n-steps", 2, *options, "--out", tmp_path / out)
        assert (result.code, result.err) == (0, "")
        name = "search.json" if "--search" in options else "edit.json"
        return result.out, json.loads((tmp_path / out / name).read_text())

    return run


# -- what an edit met -----------------------------------------------------------------------------------------------


def test_a_latent_that_never_fires(edit):
    out, report = edit("--scale", "5=5.0", "--strength", 1, 2)
    assert out.startswith("On the edited tokens latent 5 was inactive (it never fired); most often active there: ")
    assert "Nothing changed at strength 1: latent 5 was inactive on all edited tokens." in out
    assert "Nothing changed at strength 2: latent 5 was" in out
    for row in report["edits"]:
        assert (row["active"], row["inactive"]) == ({"5": 0}, [5])
        assert row["nothing_changed"] == "latent 5 was inactive on all edited tokens"
        assert (row["edited_tokens"], row["changed_tokens"], row["mean_pixel_change"]) == (2 * 64, 0, 0)
        most = row["most_active"]
        assert len(most) == 5
        assert list(most.values()) == sorted(most.values(), reverse=True)
        assert all(f"{latent} (" in out for latent in most)


def test_one_of_two_latents_that_never_fires(edit):
    (active,) = [next(iter(edit("--scale", "5=1", out="a")[1]["edits"][0]["most_active"]))]
    out, report = edit("--scale", f"5,{active}=3.0", out="b")
    (row,) = report["edits"]
    assert "latent 5 was inactive (it never fired)" in out
    assert f"latent {active} was active on " in out
    assert row["active"][active] == row["changed_tokens"] > 0
    assert row["inactive"] == [5]
    assert row["activation_change"] > 0
    assert "nothing_changed" not in row
    assert "Nothing changed" not in out


def test_latents_of_a_target(edit):
    out, report = edit("--towards", "a blue cone", "--towards-top", 2)
    (row,) = report["edits"]
    n, active = row["target_latents"], row["target_latents_active"]
    assert 2 <= n <= 96
    assert 0 < active <= n
    assert f"Of the target's strongest latents, {n} in all, {active} were active on the edited tokens." in out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--erase", 5], "latent 5 was inactive on all edited tokens"),
        (["--invert", 5], "latent 5 was inactive on all edited tokens"),
        (["--scale", "1=1"], "a factor of 1 changes nothing"),
        (["--erase-top", 3, "--strength", 0], "strength 0 is no edit"),
        (["--towards", "a blue cone", "--strength", 0], "a factor of 0 changes nothing"),
        (["--towards", "a blue cone", "--towards-top", 2, "--strength", 1], "a factor of 1 changes nothing"),
        (["--change", "house=house"], "the target's latents are the image's own"),
        (["--change", "red=red", "--altered", 3], "the target's latents are the image's own"),
    ],
)
def test_why_nothing_changed(edit, options, reason):
    out, report = edit(*options)
    where = "in 3 tokens" if "--altered" in options else f"at strength {report['edits'][0]['strength']:g}"
    assert f"Nothing changed {where}: {reason}." in out
    assert report["edits"][0]["nothing_changed"] == reason


def test_an_edit_that_moves_much_points_to_the_search(edit):
    much = ",".join(map(str, range(96))) + "=1000"
    assert "the same command with --search and another --out finds" in edit("--scale", much, out="a")[0]
    assert "--search" not in edit("--erase", 1, out="b")[0]
    out, _ = edit("--scale", much, "--steps", 0, 1, "--branch", "both", "--guidance", 2, out="c")
    assert "the same command with --search in place of --steps and --branch and another --out finds" in out


# -- the search -----------------------------------------------------------------------------------------------------


def test_search(edit, tmp_path, sae):
    out, report = edit("--change", "red=blue", "--strength", 0.5, 1, "--guidance", 2, "--seed", 4, "--search")
    rows = report["settings"]
    assert len(rows) == 2 * 2 * 3  # strengths, branches, parts of two steps
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    trials = [{"prompt": PROMPT, "seed": 4 + i, "target": "a blue house"} for i in range(3)]
    assert report["trials"] == trials
    assert set(report["what"]) == {"effect", "damage", "score"}
    for row in rows:
        assert row["effect"] == pytest.approx(sum(row["effects"]) / 3)
        assert row["damage"] == pytest.approx(sum(row["damages"]) / 3)
    first, *table = out.splitlines()
    assert first == "Searching 12 settings on 3 trials: 42 runs of 2 steps, and 3 to record targets."
    assert len(table) == 1 + 12 + 1
    best = rows[0]
    words = (
        f"--steps {best['steps'][0]:g} {best['steps'][1]:g} --branch {best['branch']} --strength {best['strength']:g}"
    )
    assert table[1].startswith(words)
    assert words in table[-1]
    with Image.open(tmp_path / "out/search.png") as picture:
        assert picture.width > 1000
    holds = contents(tmp_path / "out")
    assert (holds.kind, holds.files) == ("edit", {"search.json": "figures", "search.png": "picture"})
    assert holds.measured["best"] == best


def test_the_recommendation_is_what_tide_edit_then_draws(edit, tmp_path):
    """The options that the search names give the picture that it measured."""
    _, report = edit("--erase-top", 8, "--guidance", 2, "--search", out="search")
    best = report["settings"][0]
    steps = ["--steps", *best["steps"], "--branch", best["branch"]]
    edit("--erase-top", 8, "--guidance", 2, *steps, out="edit")
    with Image.open(tmp_path / "edit/after-1.png") as after, Image.open(tmp_path / "search/search.png") as sheet:
        places(sheet, shown(after, 192))


def test_a_search_without_a_target_says_what_it_cannot(edit):
    out, report = edit("--erase-top", 1, "--strength", 0.1, "--search")
    assert "not whether as wanted" in report["what"]["effect"]
    assert "the most change that keeps the picture whole" in out.splitlines()[-1]
    assert "give --towards or --change to measure that" in out


def test_further_checkpoints_and_prompts(edit, tmp_path, sae, other):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red tree\n\na red cone, far\n")
    search = ["--change", "red=blue", "--search", "--guidance", 1]
    out, report = edit(*search, "--search-sae", other, "--search-prompts", prompts)
    assert {row["sae"] for row in report["settings"]} == {str(sae), str(other)}
    assert [(each["prompt"], each["target"]) for each in report["trials"]] == [
        ("a red house", "a blue house"),
        ("a red tree", "a blue tree"),
        ("a red cone, far", "a blue cone, far"),
    ]
    assert {each["seed"] for each in report["trials"]} == {0}
    assert f"--sae {report['settings'][0]['sae']}" in out.splitlines()[-1]


def test_a_search_that_cannot_find_anything_says_why(edit):
    out, _ = edit("--scale", "5=5", "--search", out="a")
    assert "No setting changes anything: latent 5 was inactive on all edited tokens; most often active there: " in out
    out, _ = edit("--change", "red=red", "--guidance", 1, "--search", out="b")
    assert "No setting changes anything: the target's latents are the image's own." in out
    out, _ = edit("--change", "red=red", "--search", out="c")  # of both branches, one takes on the other's latents
    assert "The effect cannot be measured: every target's picture is the unedited one. Least damage: " in out


def test_a_search_with_one_inactive_latent_of_two_finds_something(edit):
    (active, *_) = edit("--scale", "5=1", out="a")[1]["edits"][0]["most_active"]
    out, report = edit("--scale", f"5,{active}=0.9", "--search", out="b")
    assert max(row["effect"] for row in report["settings"]) > 0
    assert "No setting changes anything" not in out
    assert out.splitlines()[-1].startswith("Try --steps ")


def test_a_search_on_one_trial_counts_it(edit, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(PROMPT)
    options = ["--change", "red=blue", "--guidance", 1, "--search", "--search-prompts", prompts]
    out, _ = edit(*options)
    assert out.startswith("Searching 3 settings on 1 trial: 5 runs of 2 steps, and 1 to record targets.\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search-sae", "x", "--erase", 1], "--search-sae is not used without --search; leave it off"),
        (["--search", "--erase", 1, "--steps", 0, 0.5], "--steps is not used with --search; leave it off"),
        (["--search", "--erase", 1, "--branch", "both"], "--branch is not used with --search; leave it off"),
        (["--search", "--erase", 1, "--search-sae", "x"], "--search-sae compares checkpoints by what they reach"),
        (["--search", "--towards", "a", "--search-prompts", "x"], "--search-prompts needs a target for each prompt"),
        (["--search", "--erase", 1, "--search-prompts", "none.txt"], "none.txt does not exist; check the path"),
        (["--search", "--towards", "a", "--search-sae", "none"], "none"),
    ],
)
def test_what_is_refused(cli, sae, tmp_path, options, message):
    result = cli("edit", "--sae", sae, "--prompt", PROMPT, "--n-steps", 2, *options, "--out", tmp_path / "out")
    assert result.code == 2
    assert result.err.startswith("tide: error: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "out").exists()

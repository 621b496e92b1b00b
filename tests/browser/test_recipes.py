"""Recipes in the folder of a run: under names that stay in it, and as programs."""

from __future__ import annotations

import ast
import json
import shlex
import threading
from pathlib import Path

import pytest

from tests.helpers.answers import refused
from tide.browser.recipes import COPIED, Recipes
from tide.cli.app import command
from tide.editing import Change, Recipe
from tide.errors import TideError

AT = "/api/runs/tide/recipes"
RECIPE = {"prompt": "a red cube", "changes": [{"latents": [1, 2], "how": "add", "by": 4.0}], "n_steps": 2}


def test_saved_listed_and_loaded(own, run):
    assert own.get(AT).json() == []
    saved = own.post(f"{AT}/my recipe-1.b_2", json=RECIPE).json()
    path = run.folder / "recipes" / "my recipe-1.b_2.json"
    assert saved == {"name": "my recipe-1.b_2", "path": str(path)}
    recipe = Recipe("a red cube", (Change((1, 2), "add", 4.0),), n_steps=2, sae=run.index.facts["sae"])
    assert Recipe.load(path) == recipe
    assert own.get(AT).json() == [{"name": "my recipe-1.b_2", "recipe": recipe.to_dict()}]


def test_what_is_listed_can_be_sent_back(own):
    own.post(f"{AT}/x", json=RECIPE)
    found = own.get(AT).json()[0]["recipe"]
    assert own.post(f"{AT}/y", json=found).json()["name"] == "y"


def test_the_same_name_replaces_in_one_step(run):
    """A reader meanwhile finds the one or the other."""
    recipes, ended = Recipes(run), threading.Event()
    given = [Recipe("a" * (1 + 5000 * i), ()) for i in range(2)]
    recipes.save("x", given[0])
    seen = []

    def read() -> None:
        while not ended.is_set():
            seen.extend(recipes.all())

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(20):
        recipes.save("x", given[i % 2])
    ended.set()
    reader.join()
    assert seen
    assert all(each.get("recipe") in (given[0].to_dict(), given[1].to_dict()) for each in seen)
    assert [path.name for path in recipes.folder.iterdir()] == ["x.json"]


BAD = [
    "..", "../x", "/etc/x", "a/b", "a\\b", ".hidden", "x.", "x ", " x", "", "a\x00b", "a\nb", "a..b", "x" * 81,
    "x" * 5000, "é" * 81, "C:", "a:b", "*", "~", "%2e", "\u202ex", "con", "NUL", "com1", "Con.x", "lpt9 .x", "-x",
    "中" * 60, "a/../../x", "|", "<b>",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=lambda name: f"{name[:10]!r} of {len(name)}")
def test_names_that_are_none(run, name):
    with pytest.raises(TideError, match=r"cannot name a (recipe|file)"):
        Recipes(run).save(name, Recipe("x", ()))
    assert not (run.folder / "recipes").exists()


@pytest.mark.parametrize(
    "name",
    ["%2e%2e", "..%2fx", "%2fetc%2fx", "..%5cx", "a%00b", "%2e%2e%2f%2e%2e%2fx", "x%0a", "%252e%252e", "con", "x" * 300,
     "%ff", "../x", "a/b", ""],
    ids=lambda name: f"{name[:12]!r} of {len(name)}",
)  # fmt: skip
def test_addresses_that_leave_the_folder(own, run, name):
    before = sorted(run.folder.parent.rglob("*"))
    refused(own.post(f"{AT}/{name}", json=RECIPE), 400, 404, 405)
    assert sorted(run.folder.parent.rglob("*")) == before


@pytest.mark.parametrize("name", ["x", "Ünïcödé", "x" * 80, "中" * 50, "a.b.c", "console", "_", "1"])
def test_names_of_files(run, name):
    Recipes(run).save(name, Recipe("x", ()))
    assert [each["name"] for each in Recipes(run).all()] == [name]


def test_a_damaged_one_is_listed_with_what_is_wrong(own, run):
    own.post(f"{AT}/good", json=RECIPE)
    folder = run.folder / "recipes"
    (folder / "bad.json").write_text("{")
    (folder / "older.json").write_text(json.dumps({"format": "tide-recipe/0"}))
    (folder / "folder.json").mkdir()
    found = {each["name"]: each for each in own.get(AT).json()}
    assert "recipe" in found["good"]
    assert "is not valid JSON" in found["bad"]["message"]
    assert "tide-recipe/0" in found["older"]["message"]
    assert "is not a file" in found["folder"]["message"]


def test_a_folder_that_cannot_be_made(own, run):
    (run.folder / "recipes").write_text("x")
    assert "a file cannot be read or written (File exists)" in refused(own.post(f"{AT}/x", json=RECIPE))


def test_copied_as_a_program_and_as_a_command(own, run):
    found = own.post("/api/runs/tide/code", json=RECIPE).json()
    assert found.keys() == {"python", "command"}
    ast.parse(found["python"])
    assert f"tide.load_sae({str(run.folder.resolve())!r}" in found["python"]
    assert "tide.load_adapter('scenes')" in found["python"]
    program, *words = shlex.split(found["command"])
    asked = command(words)
    assert (program, asked.name) == ("tide", "edit")
    (path,) = [each.split("=", 1)[1] for each in words if each.startswith("--recipe=")]
    assert Recipe.load(Path(path)).prompt == "a red cube"
    assert Path(path).parent == run.folder.resolve() / "recipes" / COPIED


def test_what_was_copied_stays_as_it_was(own, run):
    """A command that was copied earlier draws what it drew."""

    def path(recipe) -> str:
        return own.post("/api/runs/tide/code", json=recipe).json()["command"].split("--recipe=")[1].split()[0]

    first, second = path(RECIPE), path({**RECIPE, "prompt": "another"})
    assert first != second
    assert path(RECIPE) == first
    assert Recipe.load(Path(first)).prompt == "a red cube"
    assert own.get(AT).json() == []


def test_without_a_checkpoint_there_is_no_program(run):
    run.checkpoint = None
    with pytest.raises(TideError, match="the checkpoint of tide is not here; give its folder"):
        Recipes(run).code(Recipe("x", ()))


CHANGE = RECIPE["changes"][0]
WRONG = [
    ({"prompt": ""}, "the prompt is empty"),
    ({"prompt": " \n"}, "the prompt is empty"),
    ({"prompt": "x" * 10_001}, "the prompt has 10001 letters"),
    ({"prompt": 5}, "prompt is 5 and must be text"),
    ({"prompt": None}, "prompt is None"),
    ({"seed": -1}, "seed = -1"),
    ({"seed": 1.5}, "seed is 1.5"),
    ({"seed": 2**32}, "seed = "),
    ({"seed": 10**4000}, "seed"),
    ({"n_steps": 0}, "n_steps = 0 must be at least 1"),
    ({"n_steps": True}, "n_steps is True"),
    ({"guidance_scale": "4"}, "guidance_scale is '4'"),
    ({"size": [64]}, "size = (64,) must be a height and a width of at least 1 pixel, or frames and these"),
    ({"size": [0, 64]}, "size = "),
    ({"branch": "all"}, "branch is 'all'"),
    ({"sae": "0" * 16}, "the recipe is of another autoencoder than this run's; open the run that it was made with"),
    ({"sae": 5}, "sae is 5"),
    ({"colour": "red"}, "unknown field 'colour'"),
    ({"changes": None}, "changes is None"),
    ({"changes": [5]}, "changes[0] is 5"),
    ({"changes": [{}]}, "changes[0].by is missing"),
    *(
        ({"changes": [{**CHANGE, **each}]}, message)
        for each, message in [
            ({"latents": []}, "latents is empty"),
            ({"latents": [96]}, "latent 96 does not exist; there are 0..95"),
            ({"latents": [-1]}, "latents has -1"),
            ({"latents": [1.5]}, "latents[0] is 1.5"),
            ({"latents": "1"}, "latents is '1'"),
            ({"latents": [10**30]}, "does not exist"),
            ({"how": "times"}, "how is 'times'"),
            ({"by": 1e39}, "by = 1e+39 is not a finite number"),
            ({"by": None}, "by is None"),
            ({"by": 10**400}, "by is 1000"),
            ({"steps": [0.5, 0.5]}, "steps"),
            ({"steps": [0.9, 0.1]}, "steps"),
            ({"steps": [-0.1, 1]}, "steps"),
            ({"steps": [0, 2]}, "steps"),
            ({"steps": [0.1, 0.2]}, "steps"),  # none of two
            ({"steps": [0]}, "steps is [0]"),
            ({"tokens": []}, "tokens is empty"),
            ({"tokens": [-1]}, "tokens has -1"),
            ({"tokens": [64]}, "token 64 does not exist; the image has tokens 0..63"),
            ({"until": 3}, "unknown field 'until'"),
        ]
    ),
]


@pytest.fixture(scope="module")
def loaded(client):
    """The server, whose pipeline has been loaded: tokens are checked against its images from then on."""
    job = client.post("/api/drawings", json={"run": "tide", "recipe": RECIPE}).json()["job"]
    assert '"done"' in client.get(f"/api/jobs/{job}/events").text
    return client


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda each: str(each)[:50])
def test_recipes_that_are_none(loaded, fields, message):
    recipe = {**RECIPE, **fields}
    for path, body in [(f"{AT}/x", recipe), ("/api/runs/tide/code", recipe)]:
        assert message in refused(loaded.post(path, json=body))
    assert message in refused(loaded.post("/api/drawings", json={"run": "tide", "recipe": recipe}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("text", ['"guidance_scale": {}', '"changes": [{{"latents": [1], "how": "add", "by": {}}}]'])
def test_numbers_that_are_not_finite(client, text, number):
    body = f'{{"prompt": "x", "changes": [], {text.format(number)}}}'
    answer = client.post(f"{AT}/x", content=body, headers={"content-type": "application/json"})
    assert "must be a finite number" in refused(answer)


def test_deep_nesting(client):
    for depth in (100, 900, 990):
        body = '{"prompt": ' + "[" * depth + "]" * depth + ', "changes": []}'
        answer = client.post(f"{AT}/x", content=body, headers={"content-type": "application/json"})
        assert refused(answer, 400, 422)

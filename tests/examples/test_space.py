"""The demo of a Space: what its page asks of the library, and the page itself on a stand-in for Gradio."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tide
from tide.errors import TideError
from tide.index import build_index

SPACE = Path(__file__).parents[2] / "examples/space"


@pytest.fixture(scope="module")
def space():
    """The two modules of the folder, as a Space runs them."""
    sys.path.insert(0, str(SPACE))
    try:
        yield SimpleNamespace(app=import_module("app"), steering=import_module("steering"))
    finally:
        sys.path.remove(str(SPACE))
        for name in ("app", "steering"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained checkpoint of the bundled pipeline with its index."""
    folder = tmp_path_factory.mktemp("run")
    adapter = tide.load_adapter("scenes")
    config = tide.TIDEConfig(adapter.d_model, 64, 8, family=adapter.family, pipeline="scenes", block=6)
    tide.TIDE(config, seed=0).save_pretrained(folder)
    model = tide.load_sae(folder, adapter)
    source = tide.open_source("scenes", adapter, images=12)
    build_index(adapter, model, source, folder, timesteps=torch.tensor([500.0]))
    return folder


@pytest.fixture(scope="module")
def steering(space, run):
    return space.steering.Steering(run)


@pytest.fixture(scope="module")
def busy(steering):
    """A latent that fires on these images."""
    return int(steering.index.columns()["strongest"].argmax())


def asked(space, latent, **options):
    return space.steering.Asked("a red house", str(latent), n_steps=2, guidance_scale=2.0, **options)


def test_adding_is_in_units_of_the_strongest_value(space, steering, busy):
    (change,) = steering.recipe(asked(space, busy, strength=0.5)).changes
    strongest = float(steering.index.columns()["strongest"][busy])
    assert change.how == "add"
    assert change.by == pytest.approx(0.5 * strongest, rel=1e-3)


def test_multiplying_is_by_the_strength_itself(space, steering, busy):
    (change,) = steering.recipe(asked(space, busy, how="scale", strength=0.5)).changes
    assert (change.how, change.by) == ("scale", 0.5)


def test_several_latents_are_changed_one_after_the_other(space, steering):
    recipe = steering.recipe(asked(space, "3, 14", how="scale", strength=0.0))
    assert [change.latents for change in recipe.changes] == [(3,), (14,)]


def test_a_part_of_the_run_and_all_of_it(space, steering, busy):
    (some,) = steering.recipe(asked(space, busy, steps=(0.25, 0.75))).changes
    (everything,) = steering.recipe(asked(space, busy)).changes
    assert (some.steps, everything.steps) == ((0.25, 0.75), None)


def test_what_is_painted_becomes_tokens(space, steering, busy):
    width, height = steering.canvas()
    painted = np.zeros((height, width), dtype=bool)
    rows, columns = steering.index.facts["grid"]
    painted[: height // rows, : 2 * width // columns] = True  # the first two places of the first row
    (change,) = steering.recipe(asked(space, busy, painted=painted)).changes
    assert change.tokens == (0, 1)


def test_nothing_painted_is_everywhere(space, steering, busy):
    width, height = steering.canvas()
    (change,) = steering.recipe(asked(space, busy, painted=np.zeros((height, width), dtype=bool))).changes
    assert change.tokens is None


def test_a_dot_covers_no_place(space, steering, busy):
    width, height = steering.canvas()
    painted = np.zeros((height, width), dtype=bool)
    painted[0, 0] = True
    with pytest.raises(TideError, match="paint more"):
        steering.recipe(asked(space, busy, painted=painted))


@pytest.mark.parametrize("text", ["", "red", "-1", "3,", "²", None])
def test_what_is_no_latent_is_refused(steering, text):
    with pytest.raises(TideError, match="is no latent"):
        steering.latents(text)


def test_a_latent_that_there_is_not_is_refused(steering):
    with pytest.raises(TideError, match="latent 64 does not exist"):
        steering.latents("64")


def test_pictures_are_those_of_the_index(steering, busy):
    images = steering.index.rows("top_images")[busy]
    captions = [steering.index.image(int(image))["caption"] for image in images if image >= 0]
    assert [caption for _, caption in steering.pictures(str(busy))] == captions


def test_every_choice_is_one_that_can_be_drawn(steering):
    choices = steering.choices()
    assert choices
    assert all(steering.latents(latents) for _, latents in choices)


def test_a_drawing_ends_with_the_image_of_the_recipe(space, steering, busy):
    recipe = steering.recipe(asked(space, busy, strength=2.0))
    *previews, last = steering.draw(recipe)
    model = tide.load_sae(steering.run.folder, steering.adapter)
    before, after = tide.draw_recipe(steering.adapter, model, recipe)
    for shown, image in ((last.before, before), (last.after[1.0], after)):
        assert np.array_equal(np.asarray(shown.resize(image.size, Image.Resampling.NEAREST)), np.asarray(image))
    assert any(each.said == "without the change, step 1 of 2" for each in previews)
    assert last.said == ""


def test_a_row_has_every_strength(space, steering, busy):
    *_, last = steering.draw(steering.recipe(asked(space, busy)), (0.0, 1.0, 2.0))
    assert list(last.after) == [0.0, 1.0, 2.0]
    assert last.after[0.0].tobytes() == last.before.tobytes()
    assert last.after[2.0].tobytes() != last.before.tobytes()


def test_who_stops_listening_cancels(space, steering, busy):
    recipe = steering.recipe(asked(space, busy))
    drawing = steering.draw(recipe, (1.0,) * 9)
    next(drawing)
    drawing.close()
    job = next(reversed(steering._jobs._known.values()))
    while not job.ended:
        job.wait(len(job.events), 1.0)
    assert job.events[-1]["event"] == "cancelled"


def test_a_drawing_that_fails_says_why(space, steering, busy):
    recipe = steering.recipe(asked(space, busy))
    wrong = tide.Recipe(recipe.prompt, recipe.changes, n_steps=2, sae="another")
    with pytest.raises(TideError, match="another autoencoder"):
        list(steering.draw(wrong))


def test_the_recipe_is_written_as_the_library_reads_it(space, steering, busy):
    recipe = steering.recipe(asked(space, busy))
    text, python = steering.written(recipe)
    assert tide.Recipe.from_dict(json.loads(text)) == recipe
    names: dict[str, Any] = {}
    exec(python.split("before, after")[0], names)
    assert names["recipe"] == recipe


def test_a_folder_without_an_index_is_refused(space, run, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(TideError, match="has no index yet"):
        space.steering.Steering(tmp_path)


def test_another_pipeline_is_not_loaded_unasked(space, run, tmp_path):
    (tmp_path / "index").symlink_to(run / "index")
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    config = json.loads((run / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "pipeline": "somebody/pipeline"}))
    with pytest.raises(TideError, match="somebody/pipeline, which is not loaded unasked"):
        space.steering.Steering(tmp_path)


# -- the page -----------------------------------------------------------------------------------------------------


class Widget:
    """Stands for any component: remembers how it was made and what happens at its events."""

    def __init__(self, page: list, kind: str, args: tuple, options: dict) -> None:
        self.kind, self.args, self.options = kind, args, options
        self.events: dict[str, tuple] = {}
        page.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __getattr__(self, name):
        def listen(*args, **options):
            self.events[name] = (args, options)
            return name

        return listen


class FakeError(Exception):
    def __init__(self, message: str, **_: Any) -> None:
        super().__init__(message)


@pytest.fixture
def page(space, steering, monkeypatch):
    """Every widget of the page."""
    made: list[Widget] = []

    class Gradio(SimpleNamespace):
        Error, SelectData = FakeError, object

        def __getattr__(self, kind):
            return lambda *args, **options: Widget(made, kind, args, options)

    monkeypatch.setitem(sys.modules, "gradio", Gradio())
    space.app.make_page(steering)
    return made


def button(page, text):
    return next(each for each in page if each.kind == "Button" and each.args == (text,))


def given(page, busy, **changes):
    values = {
        "prompt": "a red house", "seed": 0, "guidance": 2.0, "n_steps": 2, "latents": str(busy), "how": "add",
        "strength": 1.0, "start": 0, "end": 100, "editor": None, "in_row": False, **changes,
    }  # fmt: skip
    return list(values.values())


def test_only_the_button_draws(page):
    draws = [
        (widget.kind, name)
        for widget in page
        for name, (args, _) in widget.events.items()
        if args and args[0] is not None and args[0].__name__ == "draw"
    ]
    assert draws == [("Button", "click")]
    assert len(button(page, "Draw").events["click"][0]) == 3


def test_the_button_fills_every_output(page, busy):
    (draw, inputs, outputs), _ = button(page, "Draw").events["click"]
    values = given(page, busy)
    assert len(values) == len(inputs)
    *_, (pair, row, said, recipe, python) = draw(*values)
    assert len(outputs) == 5
    assert pair[0].size == pair[1].size
    assert (row, said) == ([], "")
    assert json.loads(recipe)["changes"][0]["latents"] == [busy]
    assert python.startswith("import tide")


def test_the_slider_shows_strength_one_of_a_row(page, busy):
    (draw, *_), _ = button(page, "Draw").events["click"]
    *_, (pair, row, *_) = draw(*given(page, busy, in_row=True))
    assert [text for _, text in row] == ["0.5 times", "1 times", "1.5 times", "2 times"]
    assert pair[1] is row[1][0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latents": "red"}, "is no latent"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"start": 60, "end": 40}, "two fractions of the sampling run"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_a_mistake_is_one_line_on_the_page(page, busy, changes, said):
    (draw, *_), _ = button(page, "Draw").events["click"]
    with pytest.raises(FakeError, match=said) as caught:
        list(draw(*given(page, busy, **changes)))
    assert "\n" not in str(caught.value)


def test_nothing_is_kept_in_the_state_of_a_page(page):
    assert "State" not in {widget.kind for widget in page}


def test_what_was_painted_is_where_any_layer_is_not_clear(space):
    clear, dotted = Image.new("RGBA", (4, 2)), Image.new("RGBA", (4, 2))
    dotted.putpixel((3, 1), (255, 0, 0, 9))
    found = space.app.painted({"layers": [clear, dotted]})
    assert found.tolist() == [[False] * 4, [False, False, False, True]]
    assert space.app.painted({"layers": []}) is None
    assert space.app.painted(None) is None


# -- the Space's settings -------------------------------------------------------------------------------------------


def test_the_readme_begins_with_the_settings_of_a_space():
    head = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1]
    settings = dict(re.findall(r"^(\w+): (.+)$", head, re.MULTILINE))
    assert settings["sdk"] == "gradio"
    assert (SPACE / settings["app_file"]).is_file()
    assert len(settings["short_description"]) <= 60  # longer ones are refused


def test_gradio_is_no_dependency():
    import tomllib

    project = tomllib.loads((SPACE.parents[1] / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(each for extra in project["optional-dependencies"].values() for each in extra)]
    assert not [each for each in named if "gradio" in each]

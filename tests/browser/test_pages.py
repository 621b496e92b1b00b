"""The pages of ``tide browse``, in a real Chromium."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from benchmarks.browse import served
from tests.helpers.browsing import drawn, make_run
from tide.editing import Recipe

PROMPT = "a plain new red house, facing left, near, on grass, with a shadow"


@pytest.fixture(scope="module")
def runs(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs side by side; not made where no browser can look at them."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one", seed=0)
    make_run(folder / "two", seed=1)
    return folder


@pytest.fixture(scope="module")
def address(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(runs, log=tmp_path_factory.mktemp("log") / "log") as (found, _):
        yield found


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page whose every error, and every request to another place, fails the test."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    wrong: list[str] = []
    found = context.new_page()
    found.set_default_timeout(20_000)
    # A refusal that a test asks for is written to the console by the browser itself.
    found.on(
        "console",
        lambda said: wrong.append(said.text) if said.type == "error" and "status of 400" not in said.text else None,
    )
    found.on("pageerror", lambda error: wrong.append(str(error)))
    here = urlsplit(address).netloc
    found.on(
        "request",
        lambda asked: (
            wrong.append(asked.url)
            if not asked.url.startswith(("data:", "blob:")) and urlsplit(asked.url).netloc != here
            else None
        ),
    )
    with closing(context):
        yield found
        assert wrong == []


def until(page: Any, holds: Callable[[], bool]) -> None:
    """Waits, for half a minute at most. (Playwright's own waiting evaluates text, which the page's policy forbids.)"""
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def text_of(page: Any, selector: str) -> str:
    return str(page.text_content(selector))


def test_a_state_is_an_address_and_the_back_button_returns_to_it(page, address):
    page.goto(f"{address}?page=latents&run=one")
    drawn(page)
    page.select_option("label:has-text('Sort by') select", "rare")
    until(page, lambda: "sort=rare" in page.url)
    first = page.get_attribute(".card", "data-latent")
    page.click(".card")
    page.wait_for_selector("main.latent[data-latent] h2")
    assert f"latent={first}" in page.url
    page.go_back()
    drawn(page)
    assert page.get_attribute(".card", "data-latent") == first
    page.reload()
    drawn(page)
    assert page.input_value("label:has-text('Sort by') select") == "rare"


def test_filters_and_search_leave_what_fits(page, address):
    page.goto(f"{address}?page=latents&run=one&dead=1")
    drawn(page)
    assert page.get_attribute("[data-count]", "data-count") == "96"
    page.keyboard.press("/")
    page.keyboard.type("nothing is called this")
    page.wait_for_selector("[data-count='0']")
    assert "No latent fits" in text_of(page, "main")


def test_every_latent_can_be_scrolled_to(page, address):
    page.goto(f"{address}?page=latents&run=one&dead=1&sort=number")
    drawn(page)
    assert page.locator(".card").count() < 96
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_selector(".card[data-latent='95'][data-ready='yes']")


def test_the_keyboard_reaches_everything(page, address):
    page.goto(f"{address}?page=latents&run=one&sort=number")
    drawn(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.focus(".card >> nth=0")
    page.keyboard.press("ArrowRight")
    second = page.evaluate("document.activeElement.dataset.latent")
    assert second == page.get_attribute(".card >> nth=1", "data-latent")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"main.latent[data-latent='{second}']")
    page.keyboard.press("]")
    page.wait_for_selector(f"main.latent[data-latent='{int(second) + 1}']")
    page.keyboard.press("[")
    page.wait_for_selector(f"main.latent[data-latent='{second}']")


def test_names_are_kept_in_the_runs_folder_and_never_become_html(page, address, runs):
    page.goto(f"{address}?page=latent&run=one&latent=3")
    page.wait_for_selector("main.latent[data-latent='3']")
    named = "<img src=x onerror=alert(1)>"
    page.fill("input[name=name]", named)
    page.fill("input[name=note]", "seen on roofs")
    page.fill("input[name=who]", "anna")
    page.click("button:has-text('Save')")
    page.wait_for_selector("text=Saved.")
    page.click(".star-button")
    page.wait_for_selector(".star-button[aria-pressed=true]")
    page.reload()
    page.wait_for_selector("main.latent[data-latent='3']")
    until(page, lambda: named in text_of(page, "h1"))
    lines = [json.loads(line) for line in (runs / "one/names.jsonl").read_text().splitlines()]
    assert {"latent": 3, "by": "person:anna", "name": named, "note": "seen on roofs"}.items() <= lines[0].items()
    page.goto(f"{address}?page=latents&run=one&dead=1&text=roofs")
    page.wait_for_selector(".card[data-latent='3']")
    until(page, lambda: page.get_attribute("[data-count]", "data-count") == "1")
    page.goto(f"{address}?run=one")
    page.wait_for_selector("h2:has-text('Starred')")


def test_what_fires_at_a_place_of_an_image_and_when(page, address):
    page.goto(f"{address}?page=image&run=one&image=2")
    page.wait_for_selector(".firing li")
    everywhere = text_of(page, ".firing")
    page.click("canvas.places", position={"x": 20, "y": 20})
    page.wait_for_selector("h2:has-text('What fires there')")
    there = text_of(page, ".firing")
    assert there != everywhere
    page.focus(".scrub input")
    page.keyboard.press("ArrowRight")
    until(page, lambda: "step=0" in page.url)
    assert text_of(page, ".firing") != there


def test_places_are_painted_with_the_keyboard(page, address):
    page.goto(f"{address}?page=image&run=one&image=0")
    page.wait_for_selector(".firing li")
    page.focus("canvas.places")
    for key in (" ", "ArrowRight", " ", "ArrowDown", " "):
        page.keyboard.press(key)
    assert "3 of 64 places" in text_of(page, ".within")


def test_two_runs_are_compared(page, address):
    page.goto(f"{address}?page=compare&run=one&other=two")
    page.wait_for_selector(".match")
    assert "have a match above 0.9" in text_of(page, "main")


def steering(address: str, **changes: Any) -> str:
    recipe = {"prompt": PROMPT, "seed": 1, "n_steps": 4, "guidance_scale": 2.0, "changes": [], **changes}
    return f"{address}?page=steer&run=one&recipe={quote(json.dumps(recipe))}"


def test_an_image_is_drawn_before_and_after(page, address):
    page.goto(steering(address, changes=[{"latents": [5], "how": "add", "by": 3.0}]))
    page.click("button.primary")
    page.wait_for_selector("img.after[data-final=yes]")
    assert page.get_attribute("img.before", "data-final") == "yes"
    assert page.get_attribute("img.before", "src") != page.get_attribute("img.after", "src")


def test_a_drawing_is_cancelled_and_the_next_is_drawn(page, address):
    page.goto(steering(address, n_steps=200))
    page.click("button.primary")
    page.wait_for_selector(".over img")
    page.click("button:has-text('Cancel')")
    page.wait_for_selector(".progress:has-text('cancelled')")
    page.fill("label:has-text('Steps') input", "3")
    page.keyboard.press("Tab")
    page.click("button.primary")
    page.wait_for_selector("img.after[data-final=yes]")


def test_a_mask_is_painted_over_the_image(page, address):
    page.goto(steering(address, changes=[{"latents": [5], "how": "scale", "by": 0}]))
    page.click("button:has-text('Paint a mask')")
    page.wait_for_selector(".mask")
    page.click(".mask", position={"x": 30, "y": 30})
    until(page, lambda: '"tokens":[' in unquote(page.url))


def test_an_edit_acts_only_where_latents_fire(page, address):
    """Latents by number and the best of a concept; what is no latent is said and changes nothing. All of the mask's
    numbers are on the page, a share of more than 1 is 1."""
    page.goto(steering(address, changes=[{"latents": [5], "how": "scale", "by": 0}]))
    field = "label:has-text('Only where these fire') input"
    page.fill(field, "3, 7")
    page.keyboard.press("Tab")
    until(page, lambda: '"where":{"latents":[3,7]}' in unquote(page.url))
    page.fill("label:has-text('Grow by') input", "1")
    page.keyboard.press("Tab")
    until(page, lambda: '"where":{"latents":[3,7],"grow":1}' in unquote(page.url))
    for label, value, kept in (
        ("Average over", "2", '"smooth":2'),
        ("Stay on", "1.5", '"hold":1'),
        ("Stay on", "0.5", '"hold":0.5'),
    ):
        page.fill(f"label:has-text('{label}') input", value)
        page.keyboard.press("Tab")
        until(page, lambda kept=kept: kept in unquote(page.url))
    page.fill(field, "3, 999")
    page.keyboard.press("Tab")
    page.wait_for_selector(".message.error:has-text('There is no latent 999')")
    assert '"latents":[3,7],"grow":1' in unquote(page.url)
    concept = page.get_attribute("#concept-list option", "value")
    page.fill(field, f"{concept}, 3")
    page.keyboard.press("Enter")
    until(page, lambda: re.search(r'"where":\{"latents":\[(\d+,){1,3}3\],"grow":1', unquote(page.url)) is not None)
    page.fill(field, "")
    page.keyboard.press("Tab")
    until(page, lambda: '"where":null' in unquote(page.url))


def test_a_row_of_strengths(page, address):
    page.goto(steering(address, changes=[{"latents": [5], "how": "add", "by": 2.0}]))
    page.check("text=a row of strengths")
    page.click("button.primary")
    until(page, lambda: page.locator(".strengths img").count() == 4)
    page.wait_for_selector(".comparison[aria-busy=false]")


def test_a_recipe_is_saved_opened_and_copied(page, address, runs):
    change = {"latents": [5, 7], "how": "scale", "by": 2.5, "steps": [0.25, 1.0], "tokens": [1, 2]}
    page.goto(steering(address, changes=[change]))
    page.click("summary")
    page.fill("#recipe-name", "two windows")
    page.click("#save-recipe")
    page.wait_for_selector("text=Saved as")
    saved = Recipe.load(runs / "one/recipes/two windows.json")
    assert (saved.prompt, saved.changes[0].tokens, saved.changes[0].steps) == (PROMPT, (1, 2), (0.25, 1.0))
    page.click("button:has-text('Copy as Python')")
    page.wait_for_selector("pre code")
    assert "tide.draw_recipe" in text_of(page, "pre code")
    page.goto(steering(address))
    page.click("summary")
    page.select_option("label:has-text('Open') select", "two windows")
    page.wait_for_selector(".edit")
    assert "5" in text_of(page, ".edit-head")


@pytest.mark.parametrize(("changes", "says"), [
    ({"changes": [{"latents": [96], "how": "scale", "by": 0}]}, "there are 0..95"),
    ({"changes": [{"latents": [1], "how": "scale", "by": 0, "tokens": [64]}]}, "token 64 does not exist"),
    ({"changes": [{"latents": [1], "how": "scale", "by": 0, "where": {"latents": [96]}}]}, "there are 0..95"),
    ({"prompt": "x" * 10_001}, "at most 10000"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_said(page, address, changes, says):
    page.goto(steering(address, **changes))
    page.click("button.primary")
    page.wait_for_selector(f".message.error:has-text('{says}')")


def test_an_address_of_nothing_says_so(page, address):
    page.goto(f"{address}?run=three")
    page.wait_for_selector(".message.error:has-text('There is no run')")
    page.goto(f"{address}?page=latent&run=one&latent=999")
    page.wait_for_selector(".message.error:has-text('does not exist')")


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_screen(browser, address, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    with closing(context):
        found = context.new_page()
        for query in ("", "page=latents", "page=latent&latent=5", "page=image", "page=compare", "page=steer"):
            found.goto(f"{address}?run=one&{query}")
            found.wait_for_selector("main h1")
            found.wait_for_timeout(300)
            assert [each["id"] for each in Axe().run(found).response["violations"]] == [], query
            assert not found.evaluate("document.documentElement.scrollWidth > innerWidth"), query

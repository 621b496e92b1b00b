"""Drawings asked for by the addresses of the server, and what cannot be asked for."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable

import pytest

from tests.helpers.answers import SOON, ended, images, refused, same
from tide.browser.app import _events
from tide.browser.jobs import Job
from tide.browser.steering import MOST_STRENGTHS
from tide.editing import Change, Recipe, draw_recipe

SENT = {"prompt": "a red house", "changes": [{"latents": [9], "how": "add", "by": 30.0}], "n_steps": 2, "seed": 4}


def body(**said) -> dict:
    return {"run": "tide", "recipe": SENT, **said}


def test_a_drawing_by_the_addresses(client, bundled, model):
    answer = client.post("/api/drawings", json=body(page="a")).json()
    assert (answer.keys(), answer["before"]) == ({"job", "before"}, 0)
    stream = client.get(f"/api/jobs/{answer['job']}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line[6:]) for line in stream.text.split("\n\n") if line.startswith("data: ")]
    assert events[0]["event"] == "loading"
    assert events[-1]["event"] == "done"
    recipe = Recipe("a red house", (Change((9,), "add", 30.0),), n_steps=2, seed=4)
    before, after = draw_recipe(bundled, model, recipe)
    assert same(images(events)["before", 0], before)
    assert same(images(events)["after", 0], after)
    assert client.get(f"/api/jobs/{answer['job']}/events").text == stream.text  # also for a page that comes back


@pytest.mark.parametrize(
    ("said", "status", "message"),
    [
        ({"run": "other"}, 400, "there is no run 'other'"),
        ({"run": 5}, 422, "run: "),
        ({"recipe": None}, 422, "recipe: "),
        ({"recipe": []}, 422, "recipe: "),
        ({"strengths": []}, 400, f"give 1 to {MOST_STRENGTHS} strengths"),
        ({"strengths": [1.0] * (MOST_STRENGTHS + 1)}, 400, f"give 1 to {MOST_STRENGTHS} strengths"),
        ({"strengths": ["1"]}, 422, "strengths.0: "),
        ({"strengths": [None]}, 422, "strengths.0: "),
        ({"strengths": 1}, 422, "strengths: "),
        ({"replace": "yes"}, 422, "replace: "),
        ({"page": 5}, 422, "page: "),
        ({"wait": True}, 422, "wait: Extra inputs are not permitted"),
    ],
)
def test_drawings_that_are_none(client, said, status, message):
    assert message in refused(client.post("/api/drawings", json=body(**said)), status)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_strengths_that_are_not_finite(client, number):
    text = f'{{"run": "tide", "recipe": {{"prompt": "x", "changes": []}}, "strengths": [{number}]}}'
    answer = client.post("/api/drawings", content=text, headers={"content-type": "application/json"})
    assert refused(answer, 422) == "strengths.0: Input should be a finite number"


def test_a_page_replaces_its_own_drawing_and_no_other(own, jobs):
    free = threading.Event()
    jobs.submit(lambda job: free.wait(SOON) and None)
    ids = {}
    for name, said in [
        ("a", {"page": "a"}), ("b", {"page": "b"}), ("none", {}), ("again", {"page": "a"}),
        ("waits", {"page": "b", "replace": False}), ("none again", {}),
    ]:  # fmt: skip
        answer = own.post("/api/drawings", json=body(**said)).json()
        ids[name] = answer["job"]
    assert answer["before"] == 5
    assert own.post(f"/api/jobs/{ids['waits']}/cancel", json={}).json() == {"cancelled": True}
    free.set()
    kinds = {name: ended(jobs.get(job))[-1]["event"] for name, job in ids.items()}
    assert kinds == {
        "a": "cancelled", "b": "done", "none": "done", "again": "done", "waits": "cancelled", "none again": "done",
    }  # fmt: skip


class Page:
    """Reads a job's events as a page does."""

    def __init__(self, job: Job, leave: Callable[[Job], None] = pytest.fail) -> None:
        self.job, self.leave, self.got = job, leave, b""

    async def read(self) -> None:
        async for part in _events(self.job, self.leave):
            self.got += part

    @property
    def kinds(self) -> list[str]:
        return [json.loads(line[6:])["event"] for line in self.got.decode().split("\n\n") if line.startswith("data")]


def test_a_silent_stream_says_that_it_is_alive(jobs, monkeypatch):
    monkeypatch.setattr("tide.browser.app.ALIVE", 0.01)
    job = jobs.submit(lambda job: time.sleep(0.1))
    page = Page(job)
    asyncio.run(page.read())
    assert page.got.count(b": alive\n\n") >= 2
    assert page.kinds == ["done"]


def test_many_pages_hear_at_once(jobs):
    """More than there are threads; none waits for another's silence to end."""
    free = threading.Event()
    silent = jobs.submit(lambda job: free.wait(SOON) and None)
    waiting = jobs.submit(lambda job: job.tell("loading"))
    pages = [Page(silent) for _ in range(60)] + [Page(waiting) for _ in range(60)]

    async def listen() -> None:
        asyncio.get_running_loop().call_later(0.05, free.set)
        async with asyncio.timeout(10):
            await asyncio.gather(*(page.read() for page in pages))

    asyncio.run(listen())
    assert all(page.kinds == ["done"] for page in pages[:60])
    assert all(page.kinds == ["loading", "done"] for page in pages[60:])


def test_the_drawing_of_a_page_that_leaves_is_cancelled(jobs):
    """Unless another page hears it, too: nobody else could cancel it."""
    free = threading.Event()
    job = jobs.submit(lambda job: free.wait(SOON) and None)

    async def listen() -> None:
        first, second = (asyncio.create_task(Page(job, jobs.cancel).read()) for _ in range(2))
        await asyncio.sleep(0.05)
        for reading, cancelled in ((first, False), (second, True)):
            assert job.heard
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert job.cancelled == cancelled
        assert not job.heard

    asyncio.run(listen())
    assert job._listeners == []
    free.set()
    assert ended(job) == [{"event": "done"}]

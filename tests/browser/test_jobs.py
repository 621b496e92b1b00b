"""The queue: order, places, cancelling, whatever a job raises, and long jobs that let short ones be done in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tide.browser.jobs import KEPT, MOST_WAITING, Job, Jobs
from tide.errors import TideError

SOON = 10.0


def kinds(job: Job) -> list[str]:
    return [each["event"] for each in finished(job).events]


def finished(job: Job) -> Job:
    n = 0
    while not job.ended:
        assert job.wait(n, SOON), "the job does not end"
        n = len(job.events)
    return job


class Held:
    """A job's work that begins and then waits to be let go on."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> None:
        self.begun.set()
        assert self.free.wait(SOON)
        job.tell("image")


@pytest.fixture
def held(jobs) -> Held:
    found = Held()
    found.job = jobs.submit(found, owner="first")
    assert found.begun.wait(SOON)
    yield found
    found.free.set()


def told(name: str, into: list[str]) -> Callable[[Job], None]:
    return lambda job: into.append(name)


def test_one_after_the_other(jobs, held):
    order: list[str] = []
    waiting = [jobs.submit(told(name, order)) for name in "abc"]
    assert [jobs.place(job) for job in (held.job, *waiting)] == [0, 1, 2, 3]
    assert order == []
    held.free.set()
    finished(waiting[-1])
    assert order == ["a", "b", "c"]
    assert jobs.place(waiting[0]) == 0


def test_events_and_the_last(jobs):
    job = jobs.submit(lambda job: job.tell("step", value=float("nan")))
    assert finished(job).events == [{"event": "step", "value": None}, {"event": "done"}]
    assert job.wait(1, 0) == [{"event": "done"}]
    assert job.wait(2, SOON) == []  # at once: nothing will come


def test_listeners_hear_every_event_until_they_leave(jobs):
    heard: list[int] = []
    hold = Held()
    job = jobs.submit(hold)
    with job.listened(lambda: heard.append(len(job.events))):
        hold.free.set()
        finished(job)
    assert heard == [1, 2]
    with job.listened(lambda: heard.append(0)):
        pass
    assert heard == [1, 2]


def test_a_page_replaces_its_own(jobs, held):
    others = [jobs.submit(told("x", []), owner=owner) for owner in ("second", None, "", "first")]
    new = jobs.submit(told("new", []), owner="first", replace=True)
    held.free.set()
    assert [kinds(job)[-1] for job in (held.job, *others, new)] == [
        "cancelled", "done", "done", "done", "cancelled", "done",
    ]  # fmt: skip


def test_without_an_owner_nothing_is_replaced(jobs, held):
    other = jobs.submit(told("x", []))
    new = jobs.submit(told("y", []), replace=True)
    held.free.set()
    assert [kinds(job)[-1] for job in (held.job, other, new)] == ["done"] * 3


def test_cancelled_before_it_begins(jobs, held):
    order: list[str] = []
    first, second = (jobs.submit(told(name, order)) for name in "ab")
    jobs.cancel(first)
    assert kinds(first) == ["cancelled"]  # at once
    assert jobs.place(second) == 1
    held.free.set()
    assert kinds(second) == ["done"]
    assert order == ["b"]


def test_cancelled_while_it_runs(jobs, held):
    jobs.cancel(held.job)
    assert not held.job.ended
    held.free.set()
    assert kinds(held.job) == ["image", "cancelled"]
    assert kinds(jobs.submit(told("x", []))) == ["done"]


def test_cancelled_after_its_end(jobs):
    job = jobs.submit(told("x", []))
    assert kinds(job) == ["done"]
    jobs.cancel(job)
    assert kinds(job) == ["done"]


def test_too_many_wait(jobs, held):
    waiting = [jobs.submit(told("x", []), owner=f"{i}") for i in range(MOST_WAITING)]
    with pytest.raises(TideError, match=f"{MOST_WAITING} drawings wait already; cancel some, or wait"):
        jobs.submit(told("x", []))
    jobs.submit(told("x", []), owner="3", replace=True)  # in the place of its own
    jobs.cancel(waiting[0])
    assert jobs.place(jobs.submit(told("x", []))) == MOST_WAITING


def test_indexes_are_not_among_them(jobs, held):
    """A folder of many runs has as many indexes to make."""
    for _ in range(2 * MOST_WAITING):
        jobs.submit(told("x", []), long=True)
    jobs.submit(told("x", []))


class Panic(BaseException):
    """As the tokenizers' library raises, which is no Exception."""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TideError("it does not fit; choose another"), "it does not fit; choose another"),
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device"),
        (MemoryError(), "the memory is used up; draw a smaller image"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "the memory is used up"),
        (RuntimeError("two\nlines"), "the pipeline failed (RuntimeError: two lines); draw again, or start"),
        (KeyError("x" * 5000), "the pipeline failed (KeyError: 'xxx"),
        (SystemExit(3), "the pipeline failed (SystemExit: 3)"),
        (Panic("index out of bounds"), "the pipeline failed (Panic: index out of bounds)"),
    ],
    ids=repr,
)
def test_whatever_is_raised_the_next_runs(jobs, error, message):
    def fail(job: Job) -> None:
        raise error

    job = finished(jobs.submit(fail))
    (event,) = job.events
    assert event["event"] == "failed"
    assert event["message"].startswith(message)
    assert "\n" not in event["message"]
    assert len(event["message"]) < 1100
    assert kinds(jobs.submit(told("x", []))) == ["done"]


def test_a_long_job_lets_short_ones_be_done(jobs):
    hold, order = Held(), []

    def index(job: Job) -> None:
        hold(job)
        order.append("half")
        jobs.others()
        order.append("whole")

    long = jobs.submit(index, long=True)
    assert hold.begun.wait(SOON)
    other = jobs.submit(told("another index", order), long=True)
    short = [jobs.submit(told(name, order)) for name in "ab"]
    assert [jobs.place(job) for job in (long, *short)] == [0, 2, 3]
    hold.free.set()
    finished(other)
    assert order == ["half", "a", "b", "whole", "another index"]
    assert kinds(long) == ["image", "done"]


def test_what_fails_in_between_does_not_end_the_long_job(jobs):
    hold = Held()

    def index(job: Job) -> None:
        hold(job)
        jobs.others()

    def fail(job: Job) -> None:
        raise RuntimeError("no")

    long = jobs.submit(index, long=True)
    assert hold.begun.wait(SOON)
    short = jobs.submit(fail)
    hold.free.set()
    assert (kinds(short), kinds(long)) == (["failed"], ["image", "done"])


def test_stopping_cancels_all_also_the_long_one_that_waits_for_another():
    jobs, hold, ended = Jobs(), Held(), []

    def index(job: Job) -> None:
        while True:
            jobs.others()
            job.check()
            time.sleep(0.001)

    long = jobs.submit(index, long=True)
    short, waiting = jobs.submit(hold), jobs.submit(told("x", ended))
    assert hold.begun.wait(SOON)
    threading.Timer(0.05, hold.free.set).start()
    jobs.stop()
    assert [kinds(job)[-1] for job in (long, short, waiting)] == ["cancelled"] * 3
    assert ended == []
    with pytest.raises(TideError, match="the server is ending"):
        jobs.submit(told("x", ended))


def test_ended_jobs_are_forgotten_and_no_others(jobs, held):
    ended = []
    for _ in range(KEPT + 5):
        jobs.cancel(job := jobs.submit(told("x", [])))
        ended.append(job)
    last = jobs.submit(told("x", []))
    assert jobs.get(held.job.id) is held.job
    assert jobs.get(last.id) is last
    assert jobs.get(ended[0].id) is None
    assert jobs.get(ended[-1].id) is ended[-1]
    assert jobs.get("no such") is None

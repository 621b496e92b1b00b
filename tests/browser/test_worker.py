"""The worker's process: tasks are done one at a time, cancelled, nested, and the server outlives it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.answers import SOON, ended
from tests.helpers.exercises import Exercises
from tide.browser.jobs import Jobs
from tide.browser.worker import Worker
from tide.errors import TideError


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker(Exercises)
    yield found
    found.stop()


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    found.stop()


def done(jobs: Jobs, worker: Worker, what: str, **arguments: Any) -> tuple[list[dict[str, Any]], Any]:
    """A task's events and its result."""
    found: list[Any] = [None]

    def run(job: Any) -> None:
        found[0] = worker.call(job, what, **arguments)

    return ended(jobs.submit(run)), found[0]


def test_events_come_in_order_and_the_result_last(jobs, worker):
    events, _ = done(jobs, worker, "count", to=3)
    assert [each.get("step", each["event"]) for each in events] == [0, 1, 2, "done"]
    assert done(jobs, worker, "pid")[1] != os.getpid()


def test_one_process_does_all_tasks(jobs, worker):
    assert len({done(jobs, worker, "pid")[1] for _ in range(3)}) == 1


def test_a_cancelled_task_ends_at_its_next_event(jobs, worker):
    job = jobs.submit(lambda job: worker.call(job, "count", to=10_000, seconds=0.01))
    assert job.wait(2, SOON)
    jobs.cancel(job)
    assert ended(job)[-1] == {"event": "cancelled"}
    assert len(job.events) < 1000
    assert done(jobs, worker, "count", to=1)[0][-1] == {"event": "done"}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TideError("it is not there; check it"), "it is not there; check it"),
        (KeyError("x"), "the pipeline failed (KeyError"),
    ],
)
def test_what_a_task_raises_is_said(jobs, worker, error, says):
    event = done(jobs, worker, "fail", error=error)[0][-1]
    assert (event["event"], event["message"].startswith(says)) == ("failed", True)


@pytest.mark.parametrize(("what", "how"), [("die", "by SIGKILL"), ("leave", "with status 3")])
def test_the_process_that_dies_is_started_again(jobs, worker, what, how):
    _, before = done(jobs, worker, "pid")
    event = done(jobs, worker, what)[0][-1]
    assert event["event"] == "failed"
    assert event["message"].startswith(f"the process that draws ended {how}; draw again")
    _, after = done(jobs, worker, "pid")
    assert after not in (None, before)


def test_a_short_task_is_done_while_a_long_one_pauses(jobs, worker):
    seen: list[Any] = []

    def long(job: Any) -> None:
        def paused(said: dict[str, Any]) -> None:
            if said["done"] == 1:
                jobs.submit(lambda short: seen.append(worker.call(short, "pid")))
            jobs.others()
            seen.append(said["done"])

        worker.call(job, "pausing", paused, to=3)

    assert ended(jobs.submit(long, long=True))[-1] == {"event": "done"}
    assert seen == [0, done(jobs, worker, "pid")[1], 1, 2]


def test_a_long_task_goes_on_after_a_short_one_was_cancelled_or_failed(jobs, worker):
    ends: list[str] = []

    def long(job: Any) -> None:
        def paused(said: dict[str, Any]) -> None:
            if said["done"] == 0:
                failing = jobs.submit(lambda short: worker.call(short, "fail", error=TideError("no; do")))
                cancelled = jobs.submit(lambda short: jobs.cancel(short) or worker.call(short, "count", to=1000))
                jobs.others()
                ends.extend(ended(each)[-1]["event"] for each in (failing, cancelled))

        worker.call(job, "pausing", paused, to=3)

    assert ended(jobs.submit(long, long=True))[-1] == {"event": "done"}
    assert ends == ["failed", "cancelled"]


def test_nothing_is_left_after_the_end(jobs):
    worker = Worker(Exercises)
    _, process = done(jobs, worker, "pid")
    worker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)

"""The worker's tasks done in the jobs' own thread, for tests that look at what they do and not at the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tide.activations.source import Source
from tide.adapters import Adapter
from tide.browser.jobs import Job, Jobs
from tide.browser.runs import Run
from tide.browser.steering import Steering
from tide.browser.tasks import StudioTasks


@dataclass(frozen=True)
class Given:
    """Opens what it is given."""

    adapter: Callable[[Run], Adapter]
    source: Callable[[Run, Adapter], Source | None] = lambda run, adapter: None


@dataclass
class Telling:
    job: Job
    on_pause: Callable[[dict[str, Any]], None]

    def tell(self, kind: str, **said: Any) -> None:
        self.job.tell(kind, **said)

    def pause(self, **said: Any) -> None:
        self.on_pause(said)
        self.job.check()

    def check(self) -> None:
        self.job.check()


@dataclass
class Here:
    tasks: StudioTasks

    def call(
        self, job: Job, what: str, on_pause: Callable[[dict[str, Any]], None] = lambda said: None, **arguments: Any
    ) -> Any:
        return self.tasks.handle(what, arguments, Telling(job, on_pause))


def steering_here(
    jobs: Jobs,
    adapter: Callable[[Run], Adapter],
    source: Callable[[Run, Adapter], Source | None] = lambda run, adapter: None,
) -> Steering:
    return Steering(jobs, Here(StudioTasks(Given(adapter, source))))

"""The commands of a newcomer, each run once with a pipeline and pictures of his own, and what they say."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tide.cli.app import main


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The sentence that the command ends with."""
        return self.out.strip().splitlines()[-1] if self.out.strip() else ""


def tide(*arguments: object) -> Said:
    """Runs the command line in this process."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err, _shown_warnings():
        code = main([str(each) for each in arguments])
    return Said(code, out.getvalue(), err.getvalue())


@contextmanager
def _shown_warnings() -> Iterator[None]:
    """Warnings are printed as outside of tests, where pytest would keep them."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        for unseen in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", unseen)
        warnings.showwarning = show  # type: ignore[assignment]
        yield


@dataclass(frozen=True, eq=False)
class Flow:
    """Every command is run when its result is first asked for, after those that it needs."""

    pipeline: Path
    pictures: Path
    runs: Path
    prompt: str
    change: str
    words: tuple[str, ...]

    def _run(self, command: str, *options: object) -> Said:
        said = tide(command, "--pipeline", self.pipeline, *options)
        assert said.code == 0, said.err
        return said

    def figures(self, name: str) -> dict[str, Any]:
        """A JSON file of the runs."""
        found: dict[str, Any] = json.loads((self.runs / name).read_text())
        return found

    @cached_property
    def collect(self) -> Said:
        options = ("--token-fraction", "1/4", "--timesteps", 10, "--batch-size", 16)
        return self._run("collect", "--data", self.pictures, "--out", self.runs / "acts", *options)

    @cached_property
    def train(self) -> Said:
        assert self.collect
        small = ("--set", "n_latents=256", "k=8", "batch_tokens=512")
        options = ("--store", self.runs / "acts", "--steps", 200, *small)
        return self._run("train", *options, "--out", self.runs / "tide")

    @property
    def sae(self) -> Path:
        assert self.train
        return self.runs / "tide"

    @cached_property
    def evaluate(self) -> Said:
        options = ("--sae", self.sae, "--data", self.pictures, "--images", 48, "--batch-size", 16)
        loss = ("--loss-images", 16, "--loss-timesteps", 3)
        return self._run("evaluate", *options, *loss, "--out", self.runs / "eval")

    @cached_property
    def concepts(self) -> Said:
        options = ("--sae", self.sae, "--data", self.pictures, "--concepts", ",".join(self.words), "--fast")
        return self._run("concepts", *options, "--out", self.runs / "concepts")

    @cached_property
    def atlas(self) -> Said:
        options = ("--sae", self.sae, "--data", self.pictures, "--images", 48, "--timesteps", 2)
        return self._run("atlas", *options, "--out", self.runs / "atlas")

    @cached_property
    def trajectory(self) -> Said:
        options = ("--sae", self.sae, "--prompt", self.prompt, "--change", self.change, "--n-steps", 6)
        return self._run("trajectory", *options, "--out", self.runs / "trajectory")

    @cached_property
    def edit(self) -> Said:
        options = ("--sae", self.sae, "--prompt", self.prompt, "--change", self.change, "--n-steps", 8)
        return self._run("edit", *options, "--strength", 0.5, 1, "--guidance", 3, "--out", self.runs / "edit")

"""``tide adapters``: model families listed, what is hooked in a pipeline, and adapters proposed and checked."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro

from tide.cli.command import Command, left_behind
from tide.cli.options import Model
from tide.cli.usage import Aspect, with_option
from tide.cli.values import Flag, MaybeFile, option, read_by
from tide.errors import TideError

if TYPE_CHECKING:
    from tide.adapters import Adapter
    from tide.probing import Result

PROBE, CHECK = "probe", "check"
ACTIONS = (PROBE, CHECK)
_NONE = "without an action"


def _action(text: str) -> str:
    if text not in ACTIONS:
        raise TideError(f"{text[:60]!r} is not an action; use {PROBE} or {CHECK}, or leave it off")
    return text


_ACTION = (
    "probe: propose an adapter for the transformer of --pipeline, which TIDE does not know, into the file --write; "
    "check: whether the adapter of --pipeline fits it; without one, what is hooked in --pipeline, or a list of families"
)


@dataclass(frozen=True, kw_only=True)
class Adapters(Command):
    """List the model families, say what is hooked in a pipeline, or propose and check an adapter for it.

    A probe runs the pipeline a few times on two prompts, in a small size, and looks at every module of its transformer.
    """

    usage: ClassVar[tuple[Aspect, ...]] = (
        Aspect(
            lambda asked: _NONE if asked.action is None else f"by {asked.action}",
            {_NONE: "adapter component", f"by {PROBE}": "write code", f"by {CHECK}": "adapter component"},
        ),
        with_option("pipeline", uses="adapter component device dtype offload trust_remote_code write code"),
    )

    action: Annotated[
        str | None, read_by(_action, "ACTION"), tyro.conf.Positional, tyro.conf.arg(metavar="ACTION", help=_ACTION)
    ] = None
    model: Model = field(default_factory=Model)
    write: MaybeFile = None
    """new Python file for the adapter that is proposed, such as my_family.py"""
    code: Annotated[str | None, read_by(str, "MODULE"), option()] = None
    """module or Python file that defines classes of the pipeline, where diffusers does not; it is run"""
    json: Flag = False
    """print it as JSON"""

    def run(self) -> int | None:
        from tide.probing.listing import rows

        if self.action is None and self.model.pipeline is None:
            self._print(rows(), _listed)
            return None
        if self.model.pipeline is None:
            raise TideError(f"what to {self.action} is not named; give --pipeline")
        return {PROBE: self._probe, CHECK: self._check, None: self._describe}[self.action]()

    def _print(self, found: Any, in_words: Any) -> None:
        print(json.dumps(found, indent=2) if self.json else in_words(found))

    def _adapter(self) -> Adapter:
        from tide.cli.common import adapter_of

        return adapter_of(self.model)

    def _describe(self) -> None:
        from tide.probing import describe

        found = describe(self._adapter())
        self._print([{"what": what, "said": said} for what, said in found], lambda _: _lines(found))

    def _check(self) -> int:
        from tide.probing.checks import checks

        return self._report({}, checks(self._adapter()))

    def _probe(self) -> None:
        from tide.loading import load_pipeline
        from tide.probing import probe, tried
        from tide.probing.writing import check_new, write

        if self.write is None:
            raise TideError("where the adapter is to be written is not named; give --write my_family.py")
        check_new(self.write)
        without = ("pipeline", "adapter", "component")
        given = {name: value for name, value in asdict(self.model).items() if name not in without}
        pipe = load_pipeline(str(self.model.pipeline), code=self.code, **given)
        found = probe(pipe)
        write(found, self.write)
        left_behind.set(f"the adapter is in {self.write}, unchecked")
        said = {"found": dict(found.found), "missing": found.missing, "file": self.write}
        if not self.json:
            print(_lines(found.found))
            for each in found.missing:
                print(f"not found: {each}")
            print(f"\nThe adapter is in {self.write}. Checked on {self.model.pipeline}:")
        self._report(said, tried(found, pipe))

    def _report(self, said: dict[str, Any], results: Iterable[Result]) -> int:
        """Prints the checks as they are made; the exit code."""
        made: list[Result] = []
        for each in results:
            made.append(each)
            if not self.json:
                print(f"{_VERDICTS[each.passed]:9}{each.name:34}{each.said}", flush=True)
        counted = [each for each in made if each.passed is not None]
        passed = sum(bool(each.passed) for each in counted)
        if self.json:
            print(json.dumps({**said, "checks": [asdict(each) for each in made]}, indent=2))
        else:
            print(f"{passed} of {len(counted)} checks passed.")
        return int(passed < len(counted))


_VERDICTS = {True: "passed", False: "failed", None: "not made"}


def _listed(found: list[dict[str, Any]]) -> str:
    from tide.tables import text_table

    cells = [["" if value is None else str(value) for value in each.values()] for each in found]
    return text_table(list(found[0]), cells, words=True)


def _lines(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{said}" for name, said in rows)

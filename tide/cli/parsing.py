"""From a command line to a command with its values, or to one line that says what is wrong with it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import tyro

from tide.cli.command import Command
from tide.cli.options import Option, options_of, value_of
from tide.cli.usage import check_usage
from tide.errors import TideError

#: How tyro reads our dataclasses: groups add no prefix, flags have no ``--no-`` twins, None is not a value, and help is
#: docstrings, so that it need not look for comments.
STYLE = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.FlagCreatePairsOff,
    tyro.conf.DisallowNone,
    tyro.conf.HelptextFromCommentsOff,
)


def parse(kind: type[Command], argv: Sequence[str]) -> Command:
    """The command that ``argv``, the words after its name, describes.

    Raises :class:`~tide.errors.TideError` for faulty options, and for options that this run of the command would not
    use. ``--help`` prints and exits.
    """
    given = given_options(kind, argv)
    supplied = [other for name, other in kind.supplies.items() if name in given and other not in given]
    command = _parsed(kind, [*argv, *(f"{options_of(kind)[name].flag}=" for name in supplied)])
    _check_values(command, given)
    check_usage(command, command.usage, given.keys())
    return command


def given_options(kind: type, argv: Sequence[str]) -> dict[str, Option]:
    """The options that the words name, by their names. A word that begins with two dashes is never a value."""
    known = {option.flag: option for option in options_of(kind).values()}
    words = (word.partition("=")[0].replace("_", "-") for word in argv if word.startswith("--"))
    return {known[word].name: known[word] for word in words if word in known}


def check_text(argv: Sequence[str]) -> None:
    """Raises :class:`~tide.errors.TideError` for a word that no file and no message can name."""
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise TideError(f"argument {argument!a} is not UTF-8 text; write or rename it in UTF-8") from None
        if "\0" in argument:
            raise TideError(f"argument {argument!a} holds a NUL character; leave it out")


def _check_values(command: Command, given: Mapping[str, Option]) -> None:
    """Raises for an option without a value, or with an empty one, which would mean the current folder where it names
    a folder. Prompts may be empty."""
    for name, option in given.items():
        value = value_of(command, name)
        if option.n_words == "*" and not value:
            raise TideError(f"{option.flag} has no value; give it one or leave it off")
        if name not in ("prompt", "towards") and "" in (value if isinstance(value, tuple | list) else (value,)):
            raise TideError(f"{option.flag} is empty; give it a value or leave it off")


def _parsed(kind: type[Command], argv: Sequence[str]) -> Command:
    prog = f"tide {kind.__name__.lower()}"
    if any(word in ("-h", "--help") for word in argv):
        return tyro.cli(kind, prog=prog, args=argv, config=STYLE)  # exits
    said = io.StringIO()
    try:  # the encoding of stdout decides over the frame of tyro's messages
        with _wide(), redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), redirect_stderr(said):
            return tyro.cli(kind, prog=prog, args=argv, config=STYLE)
    except SystemExit:
        raise TideError(f"{_in_a_line(said.getvalue())}; see `{prog} --help`") from None


@contextmanager
def _wide() -> Iterator[None]:
    """tyro wraps its messages at the terminal's width; as one line they are not to be broken."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _in_a_line(box: str) -> str:
    """What tyro's box of text says, without its frame, its hints and the options' help."""
    framed = re.sub(r"\x1b\[[0-9;]*m", "", box).strip().splitlines()
    if len(framed) < 2:
        return "".join(framed) or "the options could not be read"
    title, *inside, _ = (line.strip("│ ") for line in framed)
    ruled = next((i for i, line in enumerate(inside) if line and not line.strip("─")), len(inside))
    if "Required options" in title:
        names = [re.match(r"│ {5}(\S+)", line) for line in framed[1 : ruled + 1]]  # their help is further in
        return f"required: {', '.join(name[1] for name in names if name)}"
    if "Required mutex group" in title:
        return f"one of these is required: {inside[1].strip('• ')}"
    return " ".join(line for line in inside[:ruled] if line).removeprefix("Error parsing ").rstrip(".!")

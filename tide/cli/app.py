"""The command line: ``tide demo``, ``collect``, ``train``, ``evaluate`` and the others of :data:`COMMANDS`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NoReturn

from tide.cli import atlas, collect, concepts, demo, doctor, edit, evaluate, reproduce, train, trajectory
from tide.cli.arguments import check_names, check_text
from tide.cli.usage import Usage
from tide.errors import Interrupted, TideError, TideWarning, out_of_memory
from tide.ranks import refuse_ranks

COMMANDS = (demo, collect, train, evaluate, concepts, atlas, trajectory, edit, reproduce, doctor)

#: Letters of a line on stderr: a path may be long, and somebody's slip much longer.
LONGEST = 1000


class Parser(argparse.ArgumentParser):
    """Its errors are one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise TideError(f"{message}; see `{self.prog} --help`")


def build_parser() -> Parser:
    parser = Parser(prog="tide", description="Temporal-aware sparse autoencoders for diffusion transformers.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """A fresh parser of every command, by the command's name."""
    (subparsers,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(subparsers.choices)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line. Raises :class:`~tide.errors.TideError` for faulty ones, and for options that
    the command, run like this, would not use."""
    check_text(argv)
    args = _parser().parse_args(argv)
    options = _bare_parsers()[args.command]._actions
    flags = {action.dest: action.option_strings[0] for action in options if action.option_strings}
    given = given_options(args.command, argv[1:])
    check_names(given, flags)
    usage_of(args.command).check(args, given.keys(), flags)
    return args


def given_options(command: str, argv: Sequence[str]) -> dict[str, Any]:
    """The options that a command's line itself gives, by name."""
    return vars(_bare_parsers()[command].parse_args(argv))


_parser = cache(build_parser)


@cache
def _bare_parsers() -> dict[str, argparse.ArgumentParser]:
    """The commands' parsers without any defaults."""
    parsers = command_parsers()
    for parser in parsers.values():
        parser._defaults.clear()
        for action in parser._actions:
            action.default = argparse.SUPPRESS
    return parsers


def usage_of(command: str) -> Usage:
    """Which options a command uses in which mode."""
    return next(each.USAGE for each in COMMANDS if each.__name__.endswith(f".{command}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 2 after bad input (one line on stderr), 130 after Ctrl-C, 143 after SIGTERM, 141 once
    nobody reads.

    With ``TIDE_TRACEBACK=1`` in the environment errors are raised instead.
    """
    args = argparse.Namespace()
    try:
        with _terminable(), _warnings_in_a_line():
            args = parse(sys.argv[1:] if argv is None else argv)
            if args.command != "doctor":
                refuse_ranks()
            args.run(args)
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        kept = getattr(args, "interrupted", "") or str(stop) or "nothing was written"
        print(f"tide: interrupted; {kept}", file=sys.stderr)
        return 128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT)
    except BrokenPipeError:
        # Whoever reads, such as `head`, has seen enough; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        reason = refusal(error)
        if reason is None or os.environ.get("TIDE_TRACEBACK") == "1":
            raise
        print(f"tide: error: {reason}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that whoever opened something can close it; a second one at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number=number)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # it is ignored, or somebody else's
        yield
        return
    try:
        signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Our own warnings are for users, who have no use for the line of code that gave them."""
    former = warnings.formatwarning

    def format_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
        if category in (UserWarning, TideWarning):
            return f"tide: warning: {' '.join(str(message).split())}\n"
        return former(message, category, *where, **more)

    warnings.formatwarning = format_warning
    try:
        yield
    finally:
        warnings.formatwarning = former


def refusal(error: Exception) -> str | None:
    """The line for an error that the input or the machine brought about; None for a bug, which keeps its traceback."""
    kernels = sys.modules.get("tide_kernels")
    if out_of_memory(error):
        return (
            "the memory is used up; ask for less at a time (such as --batch-size, --size, --images or n_latents), or "
            "on a GPU use --dtype bf16 or --offload"
        )
    if "torchvision" in sys.modules and isinstance(error, RuntimeError) and str(error).startswith("Failed to import "):
        return (
            "diffusers cannot be imported beside this torchvision, which was built for another torch; install "
            "torchvision from where torch came from, or uninstall it"
        )
    if isinstance(error, TideError | OSError) or (kernels is not None and isinstance(error, kernels.BackendError)):
        line = " ".join(str(error).split())
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    return None

"""The command line: ``tide demo``, ``collect``, ``train``, ``evaluate`` and the others of :data:`COMMANDS`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tide.commands import atlas, collect, concepts, demo, doctor, edit, evaluate, reproduce, train, trajectory
from tide.errors import Interrupted, TideError
from tide.ranks import refuse_ranks

COMMANDS = (demo, collect, train, evaluate, concepts, atlas, trajectory, edit, reproduce, doctor)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 2 after bad input (one line on stderr), 130 after Ctrl-C, 143 after SIGTERM, 141 once
    nobody reads.

    With ``TIDE_TRACEBACK=1`` in the environment errors are raised instead.
    """
    args = argparse.Namespace()
    try:
        args = build_parser().parse_args(argv)
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
        reason = _refusal(error)
        if reason is None or os.environ.get("TIDE_TRACEBACK") == "1":
            raise
        print(f"tide: error: {reason}", file=sys.stderr)
        return 2
    return 0


def _refusal(error: Exception) -> str | None:
    """The line for an error that the input or the machine brought about; None for a bug, which keeps its traceback."""
    kernels, torch = sys.modules.get("tide_kernels"), sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is used up; lower --batch-size or --size, or use --dtype bf16 or --offload"
    if "torchvision" in sys.modules and isinstance(error, RuntimeError) and str(error).startswith("Failed to import "):
        return (
            "diffusers cannot be imported beside this torchvision, which was built for another torch; install "
            "torchvision from where torch came from, or uninstall it"
        )
    if isinstance(error, ValueError | OSError) or (kernels is not None and isinstance(error, kernels.BackendError)):
        return " ".join(str(error).split())
    return None


if __name__ == "__main__":
    sys.exit(main())

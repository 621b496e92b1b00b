"""The command line: ``tide demo``, ``collect``, ``train``, ``evaluate`` and the other :data:`COMMANDS`.

Torch and diffusers are imported inside a command's ``run``, so that ``--help`` answers at once."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from types import FrameType
from typing import Any

from tide.cli.command import Command, left_behind
from tide.cli.parsing import check_text, parse
from tide.errors import Interrupted, TideError, TideWarning, out_of_memory
from tide.messages import say
from tide.ranks import launched, refuse_other_launchers, refuse_ranks

#: Command -> what it does. Each is a class of its name in the module of its name.
COMMANDS = {
    "demo": "train, measure, interpret and edit on the bundled pipeline",
    "collect": "collect activations into a store",
    "train": "train a TIDE, or with --sae a plain SAE",
    "evaluate": "measure reconstruction and diffusion loss of a checkpoint",
    "sweep": "measure the autoencoders of several blocks and draw them by block and timestep",
    "concepts": "find latents of concepts and draw where they fire",
    "atlas": "draw all latents as one page to look through",
    "browse": "look through latents, name them and steer with them in a browser",
    "names": "show, add and find the names of a checkpoint's latents",
    "trajectory": "follow the latents along a sampling run",
    "effect": "find the latents that move a prompt towards another one",
    "bank": "record concepts: where latents find them, and what to put there",
    "edit": "draw a prompt before and after an edit of its latents",
    "score": "score a folder of pictures beside another one: FID, CMMD, CLIP, LPIPS",
    "guard": "make a guard that keeps an unwanted concept out of images, or show one",
    "push": "send a checkpoint to the Hugging Face Hub, with a model card",
    "pull": "fetch a checkpoint from the Hugging Face Hub",
    "convert": "turn an SAE of another library into a checkpoint, or a checkpoint into one of theirs",
    "reproduce": "reproduce the paper's tables and figures",
    "plan": "say what collecting and training will take",
    "adapters": "list model families, say what is hooked in a pipeline, and propose an adapter for an unknown one",
    "doctor": "show versions, devices, kernel backends and bundled data",
}
#: Letters of a line on stderr: a path may be long, and a mistyped argument can be very long.
LONGEST = 1000


def command(argv: Sequence[str]) -> Command | None:
    """The command that a whole command line describes; None for ``tide --help``.

    Raises :class:`~tide.errors.TideError` for words that describe none.
    """
    check_text(argv)
    name, *words = argv or ["--help"]
    if name in ("-h", "--help"):
        return None
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1, cutoff=0.7)
        meant = f"did you mean {near[0]}? " if near else ""
        raise TideError(f"{name[:60]!r} is not a command; {meant}the commands are {', '.join(COMMANDS)}")
    with _uncollected():
        return parse(class_of(name), words)


def class_of(name: str) -> type[Command]:
    """The class of a command; imports its module."""
    found: type[Command] = getattr(import_module(f"tide.cli.{name}"), name.capitalize())
    return found


OVERVIEW = """usage: tide COMMAND [OPTIONS]

Temporal-aware sparse autoencoders for diffusion transformers.

commands:
{commands}

`tide COMMAND --help` lists a command's options."""


def overview() -> str:
    """What ``tide --help`` prints."""
    return OVERVIEW.format(commands="\n".join(f"  {name:12}{what}" for name, what in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns 0, 1 if it checked something that does not hold, 2 after bad input (one line on stderr),
    130 after Ctrl-C, 143 after SIGTERM, 141 if stdout was closed.

    With ``TIDE_TRACEBACK=1`` in the environment errors are raised instead.
    """
    asked = None
    left_behind.set(None)
    try:
        with _terminable(), _warnings_in_a_line():
            asked = command(sys.argv[1:] if argv is None else argv)
            if asked is None:
                print(overview())
                return 0
            if asked.name == "train":
                refuse_other_launchers()
            elif asked.name not in ("doctor", "collect"):  # processes that collect divide the images among them
                refuse_ranks()
            code = asked.run()
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        kept = left_behind.get() or str(stop) or (Command if asked is None else asked).interrupted
        say(f"tide: interrupted; {_own_rank()}{kept}", sys.stderr)
        return 128 + (stop.signal if isinstance(stop, Interrupted) else signal.SIGINT)
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe; what is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        reason = refusal(error)
        if reason is None or os.environ.get("TIDE_TRACEBACK") == "1":
            raise
        say(f"tide: error: {_own_rank()}{reason}", sys.stderr)
        return 2
    return code or 0


def _own_rank() -> str:
    """How a line begins that one of several ranks prints."""
    found = launched()
    return "" if found is None else f"rank {found.number} of {found.count}: "


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: reading the options makes many objects that stay, and a sixth of ``--help``'s time
    would go into looking through them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises like Ctrl-C, so that resources are closed; a second one kills."""

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
    """Prints our own warnings without the line of code that gave them, which is of no use to users."""
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
    """The line for an error that the input or the machine caused; None for a bug, which keeps its traceback."""
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

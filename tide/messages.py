"""Messages and their parts: a printed line, text from libraries and files, counts."""

from typing import TextIO


def say(line: str, file: TextIO | None = None) -> None:
    """Prints a line in one piece, so that those of processes that share an output, such as torchrun's, do not mix."""
    print(f"{line}\n", end="", file=file)


def one_line(said: object, most: int = 300) -> str:
    """A library's error, or text from a file, as one printable line of at most ``most`` characters."""
    text = " ".join(str(said).split()) or type(said).__name__
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def counted(n: int, what: str) -> str:
    """``1 step``, ``2 steps``; ``what`` is a noun whose plural ends in s."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def readable_size(n: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} PB"

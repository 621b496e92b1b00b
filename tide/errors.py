"""The error that bad input raises, and how the errors of libraries become part of its message."""


class TideError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""


def in_a_line(error: object, most: int = 300) -> str:
    """What a library says of a file, fit for a message: one line of ``most`` characters, all of them printable."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."

"""Text from libraries and files as part of a message."""


def one_line(said: object, most: int = 300) -> str:
    """A library's error, or text from a file, as one printable line of at most ``most`` characters."""
    text = " ".join(str(said).split()) or type(said).__name__
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."

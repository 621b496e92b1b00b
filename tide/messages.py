"""How what others say, libraries and files, becomes part of a message."""


def one_line(said: object, most: int = 300) -> str:
    """An error of a library, or what a file holds, as one line of ``most`` characters, all of them printable."""
    text = " ".join(str(said).split()) or type(said).__name__
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."

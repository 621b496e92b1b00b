"""The error that bad input raises."""


class TideError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""

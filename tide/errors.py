"""The error that bad input raises, and the warning of work that changed nothing."""


class TideError(ValueError):
    """Bad input. The message is one line that names the thing and the remedy."""


class TideWarning(UserWarning):
    """Something was asked for and had no effect. The message is one line with the likely reason."""

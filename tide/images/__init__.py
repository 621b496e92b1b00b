"""Images of others: opened, and identified."""

from tide.images.decode import open_picture
from tide.images.modes import to_rgb

__all__ = ["open_picture", "to_rgb"]

"""Images of others: opened, captioned, selected and identified."""

from tide.images.decode import open_picture
from tide.images.modes import to_rgb
from tide.images.opening import image_folder, open_data

__all__ = ["image_folder", "open_data", "open_picture", "to_rgb"]

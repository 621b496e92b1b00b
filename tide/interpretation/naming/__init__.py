"""Names of latents that are found automatically. Each is chosen on some images and scored on others."""

from tide.interpretation.naming.captions import name_by_captions
from tide.interpretation.naming.clip import caption_candidates, image_similarity, name_by_clip, name_by_similarity
from tide.interpretation.naming.pieces import Peaks
from tide.interpretation.naming.vision_client import VisionModel
from tide.interpretation.naming.vision_model import ask_names, name_by_model

__all__ = [
    "Peaks",
    "VisionModel",
    "ask_names",
    "caption_candidates",
    "image_similarity",
    "name_by_captions",
    "name_by_clip",
    "name_by_model",
    "name_by_similarity",
]

"""Interpretation: concepts, where they are, and how they move along the trajectory."""

from tide.interpretation.concepts import (
    Annotated,
    Found,
    concept_scores,
    dense_latents,
    find_concepts,
    mean_latents,
    pooled_latents,
)
from tide.interpretation.maps import Contrast, prompt_contrast

__all__ = [
    "Annotated",
    "Contrast",
    "Found",
    "concept_scores",
    "dense_latents",
    "find_concepts",
    "mean_latents",
    "pooled_latents",
    "prompt_contrast",
]

"""A tiny, real pipeline with ground truth: captioned scenes, their masks, the pipeline that draws them, its judge."""

from tide.scenes.annotate import annotated_scenes, concept_masks, generate_images, images_of
from tide.scenes.judge import Judge, Verdict, load_judge
from tide.scenes.pipeline import build_pipeline, load_pipeline
from tide.scenes.render import Rendering, render
from tide.scenes.scene import ATTRIBUTES, CONCEPTS, LEVEL_OF, Scene, combinations, prompts, scenes

__all__ = [
    "ATTRIBUTES",
    "CONCEPTS",
    "LEVEL_OF",
    "Judge",
    "Rendering",
    "Scene",
    "Verdict",
    "annotated_scenes",
    "build_pipeline",
    "combinations",
    "concept_masks",
    "generate_images",
    "images_of",
    "load_judge",
    "load_pipeline",
    "prompts",
    "render",
    "scenes",
]

"""Evaluation: reconstruction and what it must beat, the diffusion loss, both as a table, distances between sets of
images, statistics for reports."""

from tide.evaluation.baselines import PCA
from tide.evaluation.diffusion_loss import diffusion_loss, recovered, sae_intervention, zero_ablation
from tide.evaluation.edit_ruler import EditTrial
from tide.evaluation.edit_search import Search, search_edits
from tide.evaluation.frechet import frechet_distance
from tide.evaluation.layer_sweep import sweep
from tide.evaluation.mmd import cmmd
from tide.evaluation.reconstruction import evaluate_reconstruction, with_sae
from tide.evaluation.statistics import auroc, auroc_interval, wilson_interval
from tide.evaluation.table import evaluate, evaluate_blocks
from tide.evaluation.wording import blocks_sentence, blocks_text, evaluation_sentence, evaluation_text

__all__ = [
    "PCA",
    "EditTrial",
    "Search",
    "auroc",
    "auroc_interval",
    "blocks_sentence",
    "blocks_text",
    "cmmd",
    "diffusion_loss",
    "evaluate",
    "evaluate_blocks",
    "evaluate_reconstruction",
    "evaluation_sentence",
    "evaluation_text",
    "frechet_distance",
    "recovered",
    "sae_intervention",
    "search_edits",
    "sweep",
    "wilson_interval",
    "with_sae",
    "zero_ablation",
]

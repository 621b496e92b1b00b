"""Training: configuration, schedules, the trainer, and what it trains on."""

from tide.training.build import build_model
from tide.training.config import LossConfig, ProgressiveK, RevivalConfig, TrainConfig
from tide.training.sources import Job, from_pool, from_stores, live
from tide.training.state import is_trained
from tide.training.to_checkpoint import train
from tide.training.trainer import Trainer

__all__ = [
    "Job",
    "LossConfig",
    "ProgressiveK",
    "RevivalConfig",
    "TrainConfig",
    "Trainer",
    "build_model",
    "from_pool",
    "from_stores",
    "is_trained",
    "live",
    "train",
]

"""Training: configuration, schedules, the trainer, and what it trains on."""

from tide.training.build import build_model
from tide.training.config import LossConfig, ProgressiveK, RevivalConfig, TrainConfig
from tide.training.job import Job, Jobs
from tide.training.learner import Learner
from tide.training.live_source import live, live_blocks
from tide.training.sources import from_block_stores, from_pool, from_stores
from tide.training.state import is_trained
from tide.training.to_checkpoint import train, train_blocks
from tide.training.trainer import Trainer

__all__ = [
    "Job",
    "Jobs",
    "Learner",
    "LossConfig",
    "ProgressiveK",
    "RevivalConfig",
    "TrainConfig",
    "Trainer",
    "build_model",
    "from_block_stores",
    "from_pool",
    "from_stores",
    "is_trained",
    "live",
    "live_blocks",
    "train",
    "train_blocks",
]

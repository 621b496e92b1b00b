"""Training: configuration, schedules and the trainer."""

from tide.training.config import LossConfig, ProgressiveK, RevivalConfig, TrainConfig
from tide.training.state import is_trained
from tide.training.trainer import Trainer, build_model

__all__ = ["LossConfig", "ProgressiveK", "RevivalConfig", "TrainConfig", "Trainer", "build_model", "is_trained"]

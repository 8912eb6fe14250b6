"""Training that survives being killed: a resumable loop, and low-rank adapters taught with it."""

from mediant.training.adapters import answer_loss, train_adapter
from mediant.training.checkpoint import LoggedStep
from mediant.training.loop import LoopConfig, TrainingLog, chance_on, step_generator, train

__all__ = ["LoggedStep", "LoopConfig", "TrainingLog", "answer_loss", "chance_on", "step_generator", "train", "train_adapter"]

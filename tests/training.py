"""Trainings in tests, with what each test varies as arguments."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pruning import Pruner
from runner.config.training import Training
from runner.training import loop
from runner.training.cost import TrainingStats
from runner.training.job import TrainingJob
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData


class Interrupt(Exception):
    """Raised by a logger to end a training in the middle."""


def quiet(step: int, values: Mapping[str, float]) -> None:
    """Log nothing."""


class Recorder:
    """A logger that calls functions."""

    def __init__(self, log: Callable[..., Any] = quiet, flush: Callable[[], Any] = lambda: None) -> None:
        self.log, self.flush = log, flush

    def begin(self, step: int) -> None:
        """Do nothing."""


def train(
    student: Any, data: TrainingData, settings: Training, supervision: Supervision, pruner: Pruner | None, seed: int,
    folder: Path, title: str = "t", log: Callable[..., Any] = quiet, flush: Callable[[], Any] = lambda: None,
) -> TrainingStats:  # fmt: skip
    """Train a model in place."""
    return loop.train(
        TrainingJob(student, data, settings, supervision, pruner, seed, folder, title), Recorder(log, flush)
    )

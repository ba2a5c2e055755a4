"""One training, as an object: what is trained on what, under whose supervision, and where its checkpoints go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import Pruner
from runner.config.training import Training
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class TrainingJob:
    """A training of one model; all ranks hold the same."""

    student: PreTrainedModel
    """The model, trained in place."""
    data: TrainingData
    settings: Training
    supervision: Supervision
    pruner: Pruner | None
    """Prunes the student in the optimizer's steps; None in a fine-tuning."""
    seed: int
    """Seed of the data order and of dropout."""
    folder: Path
    """The folder of its checkpoints; an interrupted training resumes from the last of them."""
    title: str
    """The title of its progress."""

"""Scores of the student on a part of train while it trains, and what follows from them: stopping early, the best
weights. Nothing of it reads the examples that the table reports."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from runner.config.training import Evaluation
from runner.system import ranks
from runner.system.errors import UserError
from runner.tracking.logger import TrainingLogger
from runner.training.inference import score
from runner.training.job import TrainingJob

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

SCORES_FILE = "validation.json"
BEST_FILE = "best.safetensors"


@dataclass
class ValidationScore:
    """The student's score at a moment of its training."""

    step: int
    """Optimizer steps taken."""
    sparsity: float
    """Fraction of the weights of the pruned layers that is zero."""
    score: float
    """The main metric on the validation examples."""


class Validation(TrainerCallback):
    """Scores the student after each mask update or epoch, and after the last step.

    Best scores count from the last mask update on, when the sparsity is final. Of equal scores the first is the best.

    Args:
        job: its data have validation examples.
        resume_from: a checkpoint to go back to; None at the start.
    """

    def __init__(self, job: TrainingJob, logger: TrainingLogger, resume_from: Path | None) -> None:
        self.job, self.logger, self.resume_from = job, logger, resume_from
        self.epoch = job.data.batches(job.settings, job.seed).steps
        self.best: float | None = None
        """The highest score since the last mask update."""
        self.best_step = 0
        self.worse = 0
        """Number of scores since the best one."""
        self.weights: dict[str, Tensor] = {}
        """Parameters of the best score by name, on the CPU, if they are to be saved."""
        self.scores: list[ValidationScore] = []
        """All scores of the training, those before a resume included."""
        self._updates = 0  # of the masks, when the student was last scored

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resume_from is None:
            self._updates = self._updates_made()  # one at step 0
            return
        names = [SCORES_FILE] + ([BEST_FILE] if self.job.settings.best_checkpoint else [])
        for file in (self.resume_from / name for name in names):
            if not file.is_file():
                raise UserError(
                    f"{file} is missing: this checkpoint cannot be resumed; delete {file.parent} to start from the "
                    "one before"
                )
        values = json.loads((self.resume_from / SCORES_FILE).read_text(encoding="utf-8"))
        self.best, self.best_step, self.worse, self._updates = (
            values[key] for key in ("best", "best_step", "worse", "updates")
        )
        self.scores = [ValidationScore(**values) for values in values["scores"]]
        if self.job.settings.best_checkpoint:
            self.weights = load_file(self.resume_from / BEST_FILE)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        step, updates = state.global_step, self._updates_made()
        updated, last = updates != self._updates, step >= state.max_steps
        due = updated if self.job.settings.evaluate is Evaluation.updates else step % self.epoch == 0
        if updated:  # scores of a lower sparsity are not compared with later ones
            self.best, self.worse, self.weights, self._updates = None, 0, {}, updates
        if due or last:
            self._score(step)
            patience = self.job.settings.patience
            if patience is not None and self.worse >= patience and not last:
                log.info("step %d: %d scores in a row are not above the best, that of step %d: the training ends "
                         "(train.patience)", step, self.worse, self.best_step)  # fmt: skip
                control.should_training_stop = True
                control.should_save = False  # a training that resumed from here would take a step more
        return control

    def _score(self, step: int) -> None:
        metric = self.job.data.task.metric
        value = ranks.broadcast(self._value)
        sparsity = 0.0 if self.job.pruner is None else self.job.pruner.sparsity
        self.scores.append(ValidationScore(step, sparsity, value))
        self.logger.log(step, {f"validation_{metric}": value, "validation_sparsity": sparsity})
        log.info("step %d: validation %s %.4f at %.1f %% sparsity", step, metric, value, 100 * sparsity)
        if not self._is_final():
            return
        if self.best is not None and value <= self.best:
            self.worse += 1
            return
        self.best, self.best_step, self.worse = value, step, 0
        if self.job.settings.best_checkpoint:
            self.weights = {
                name: p.detach().cpu().clone() for name, p in self.job.student.named_parameters() if p.requires_grad
            }

    def _value(self) -> float:
        job = self.job
        examples: datasets.Dataset | None = job.data.validation
        assert examples is not None
        try:
            scores = score(job.student, job.data.tokenizer, job.data.task, examples, job.data.cache, "Validating")
        finally:
            job.student.train()
        return scores.metrics[job.data.task.metric]

    def _is_final(self) -> bool:
        """Whether the last mask update was made."""
        pruner = self.job.pruner
        return pruner is None or pruner.steps_taken >= max(pruner.updates, default=0)

    def _updates_made(self) -> int:
        return 0 if self.job.pruner is None else len(self.job.pruner.history)

    def save(self, checkpoint: Path) -> None:
        """Write the scores, and the best weights, into a checkpoint."""
        values = {"best": self.best, "best_step": self.best_step, "worse": self.worse, "updates": self._updates,
                  "scores": [asdict(score) for score in self.scores]}  # fmt: skip
        (checkpoint / SCORES_FILE).write_text(json.dumps(values), encoding="utf-8")
        if self.job.settings.best_checkpoint:
            save_file(self.weights, checkpoint / BEST_FILE)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the weights of the best score, if that is asked for."""
        if not self.weights:
            return
        log.info(
            "the weights of step %d are saved: their validation score, %.4f, is the best", self.best_step, self.best
        )
        for name, tensor in self.weights.items():
            self.job.student.get_parameter(name).copy_(tensor)

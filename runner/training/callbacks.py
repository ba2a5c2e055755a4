"""Callbacks of transformers' Trainer: the pruner, resuming, stopping on a signal, and progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from pruning import Pruner
from pruning.transformers import attach, load
from runner.system import ranks
from runner.system.errors import UserError
from runner.system.progress import Progress
from runner.tracking.logger import TrainingLogger
from runner.training.batches import Batches
from runner.training.trainer import PRUNER_FILE, DistillTrainer, diverged


class StopWhenAsked(TrainerCallback):
    """Saves and stops after the step in which any rank received a signal."""

    def __init__(self, asked: Callable[[], int | None]) -> None:
        self.asked = asked

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> Any:
        if ranks.all_max(self.asked() or 0):
            # A training that ends early by its scores is not saved here: resumed, it would take a step more.
            control.should_save = control.should_save or not control.should_training_stop
            control.should_training_stop = True
        return control


class Epochs(TrainerCallback):
    """Sets the epoch of the batches: Trainer does so only while nothing wraps them, and it wraps them on
    resume under several ranks."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.set_epoch(int(state.epoch or 0))


class Resume(TrainerCallback):
    """Restores the mean loss of a checkpoint."""

    def __init__(self, trainer: DistillTrainer, checkpoint: Path) -> None:
        self.trainer, self.checkpoint = trainer, checkpoint

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.restore_meter(self.checkpoint)


class PruningCallback(TrainerCallback):
    """Restores and attaches the pruner when the training begins; it then prunes in the optimizer's steps."""

    def __init__(self, pruner: Pruner, resume_from: Path | None) -> None:
        self.pruner, self.resume_from = pruner, resume_from

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.resume_from is not None:
            load_pruner(self.pruner, self.resume_from / PRUNER_FILE)
        attach(self.pruner, kwargs["optimizer"])


def load_pruner(pruner: Pruner, file: Path) -> None:
    """Restore a pruner from a checkpoint. Without its masks a resumed run would silently be dense: an error."""
    if not file.is_file():
        raise UserError(
            f"{file} is missing: this checkpoint cannot be resumed; delete {file.parent} to start from the one before"
        )
    load(pruner, file)


class ShowProgress(TrainerCallback):
    """Shows the training's progress with loss and sparsity, on rank 0; logs the same numbers."""

    def __init__(self, trainer: DistillTrainer, logger: TrainingLogger) -> None:
        self.trainer, self.logger = trainer, logger
        self.progress: Progress | None = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.progress = Progress(self.trainer.job.title, state.max_steps, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if self.progress is not None:
            self.progress.update()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        loss = self.trainer.mean_loss()  # a collective: every rank must call it
        if not math.isfinite(loss):
            raise diverged(state.global_step)
        if not state.is_world_process_zero:
            return
        numbers = {"loss": loss, "learning_rate": logs["learning_rate"]}
        if self.trainer.job.pruner is not None:
            numbers["sparsity"] = self.trainer.job.pruner.sparsity
        self.logger.log(state.global_step, numbers)
        if self.progress is not None:
            self.progress.numbers(**{name: value for name, value in numbers.items() if name != "learning_rate"})

    def close(self) -> None:
        """End the bar, also after an error."""
        if self.progress is not None:
            self.progress.close()

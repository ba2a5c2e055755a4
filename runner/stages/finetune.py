"""Stage 4: the dense model, which is also the teacher: given, or fine-tuned once and cached by what determines it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import NoDistillation
from runner import models
from runner.config.experiment import Experiment
from runner.system import circumstances, files, ranks
from runner.system.circumstances import Span
from runner.system.errors import writing
from runner.system.process import ONCE
from runner.training.supervision import Supervision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from runner.stages.context import RunContext
    from runner.tracking.logger import TrainingLogger
    from runner.training.training_data import TrainingData

log = logging.getLogger(__name__)


@dataclass
class FinetuningTask:
    """What every rank needs to fine-tune the dense model."""

    experiment: Experiment
    base: models.Checkpoint
    """The pretrained checkpoint."""
    data: TrainingData
    folder: Path
    """The folder of the fine-tuned model."""

    @property
    def checkpoints(self) -> Path:
        """The folder of the training's checkpoints."""
        return self.folder.with_name(f"{self.folder.name}.work")


def finetune(run: RunContext) -> models.Checkpoint:
    """The dense model, fine-tuned now if it is neither given nor in the cache."""
    base, data = run.inputs.sources.base, run.inputs.dense_data
    with run.cost.stage("finetune"):
        if run.experiment.model.finetuned:
            return base
        assert data is not None
        task = FinetuningTask(run.experiment, base, data, run.inputs.dense_folder)
        dense = finetune_once(task, run.tracker.logger("finetune"))
    run.note_circumstances("the fine-tuning", circumstances.read(task.folder))
    return dense


def finetune_once(task: FinetuningTask, logger: TrainingLogger | None = None) -> models.Checkpoint:
    """The dense model from the cache, or fine-tuned now; of several processes that ask at once, one trains it and the
    others wait."""

    def read(folder: Path) -> models.Checkpoint | None:
        if not files.is_intact(folder):
            return None
        log.info("the dense model is cached in %s", folder, extra=ONCE)
        return models.find(str(folder), "the dense model", task.experiment.model)

    def make(folder: Path) -> models.Checkpoint:
        log.info("fine-tuning the dense model (cached in %s)", folder)
        model = ranks.on_all_ranks(train_dense, task, logger=logger)
        save_model(model, task.data.tokenizer, folder, circumstances.read(task.checkpoints))
        shutil.rmtree(task.checkpoints, ignore_errors=True)
        return models.find(str(folder), "the dense model", task.experiment.model)

    return files.make_once(task.folder, read, make, "fine-tunes the same dense model")


def train_dense(task: FinetuningTask, logger: TrainingLogger | None = None) -> PreTrainedModel:
    """Fine-tune the dense model, on all ranks."""
    from transformers import set_seed

    from runner.training.job import TrainingJob
    from runner.training.loop import train

    experiment, data = task.experiment, task.data
    set_seed(experiment.seed)  # the head is drawn at random
    model = models.load(data.task.architecture, task.base)
    supervision = Supervision(NoDistillation())
    train(
        TrainingJob(
            model, data, experiment.finetune, supervision, None, experiment.seed, task.checkpoints, "Fine-tuning"
        ),
        logger,
    )
    return model


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, spans: Sequence[Span] = ()
) -> None:
    """Write a model folder atomically, with checksums, and the circumstances of its training if they are given."""
    with writing(folder), files.atomic_folder(folder) as partial:
        model.save_pretrained(partial, safe_serialization=True)
        tokenizer.save_pretrained(partial)
        if spans:
            circumstances.write(partial, spans)


def keep_dense(run: RunContext, dense: models.Checkpoint) -> None:
    """Save the dense model in the run's folder, for prune=false."""
    model = models.load(run.experiment.dataset.architecture, dense)
    save_model(model, run.inputs.tokenizer, run.folder.model)

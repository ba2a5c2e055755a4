"""Stage 6: prune a copy of the dense model while it is distilled, and save it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pruning import Dense, LayerReport, MaskUpdate, Pruner, TimePrediction, predict
from runner import models
from runner.config.experiment import Experiment
from runner.models.verify import Verification, verify
from runner.stages.finetune import save_model
from runner.stages.prepare import new_pruner
from runner.stages.teacher import supervision_of
from runner.system import circumstances, ranks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.stages.context import RunContext
    from runner.tracking.logger import TrainingLogger
    from runner.training.cost import TrainingStats
    from runner.training.supervision import Supervision
    from runner.training.training_data import TrainingData


@dataclass
class Pruned:
    """The pruner's report; the model itself is in the run's folder."""

    layers: list[LayerReport]
    updates: list[MaskUpdate]
    predicted: TimePrediction | None = None
    """The time of the model once what is pruned is cut out; None if no times were given."""


@dataclass
class PruningTask:
    """What every rank needs to prune the student."""

    experiment: Experiment
    data: TrainingData
    teachers: list[models.Checkpoint]
    start: models.Checkpoint
    """The checkpoint that the student starts from."""
    checkpoints: Path
    chosen: models.StudentLayers | None = None
    """Layers of the dense model that the student has; None: all."""

    @property
    def title(self) -> str:
        """The title of the training's progress."""
        if not isinstance(self.experiment.pattern, Dense):
            return f"Pruning to {self.experiment.pattern}"
        return "Training the control" if self.chosen is None else f"Training {len(self.chosen.layers)} layers"


def prune(run: RunContext, dense: models.Checkpoint, supervision: Supervision) -> Pruned:
    """Prune a copy of the dense model, or of a given sparse one, and save it as `model` in the run's folder."""
    inputs, sources = run.inputs, run.inputs.sources
    assert inputs.data is not None
    task = PruningTask(
        run.experiment,
        inputs.data,
        sources.teachers or [dense],
        sources.sparse or dense,
        run.folder.checkpoints,
        sources.chosen,
    )
    student, pruner, stats = ranks.on_all_ranks(
        train_student, task, supervision=supervision, logger=run.tracker.logger("train")
    )
    run.cost.add_training(stats)
    run.note_circumstances("the pruning", circumstances.read(run.folder.checkpoints))
    with run.cost.stage("save"):
        save_model(student, inputs.tokenizer, run.folder.model)
    run.stages["prune"] = models.find(str(run.folder.model), "the saved model", run.experiment.model).weights
    return Pruned(pruner.report(), pruner.history, predict(pruner.plan, pruner.masks))


def train_student(
    task: PruningTask, supervision: Supervision | None = None, logger: TrainingLogger | None = None
) -> tuple[PreTrainedModel, Pruner, TrainingStats]:
    """The pruned student, its pruner and what the training did; on all ranks.

    Args:
        supervision: if not given, it is read again: rank 0 has cached the teacher's logits before.
    """
    from transformers import set_seed

    from runner.training.calibration import calibration, prune_only
    from runner.training.job import TrainingJob
    from runner.training.loop import train

    experiment, data = task.experiment, task.data
    supervision = supervision or supervision_of(experiment, data, task.teachers, task.chosen)
    set_seed(experiment.seed)
    student = load_student(experiment, task.start, task.chosen)
    data_for_updates = calibration(experiment.criterion, student, data, experiment.train.precision)
    pruner = new_pruner(experiment, student, data.length(experiment.train), data_for_updates)
    if not experiment.train.takes_steps:
        return student, pruner, prune_only(student, pruner)
    job = TrainingJob(
        student, data, experiment.train, supervision, pruner, experiment.seed, task.checkpoints, task.title
    )
    return student, pruner, train(job, logger)


def load_student(
    experiment: Experiment, start: models.Checkpoint, chosen: models.StudentLayers | None
) -> PreTrainedModel:
    """The model that is to be pruned, with `model.frozen` frozen.

    Args:
        chosen: the layers that it has; None: all.
    """
    how = experiment.distill
    start = models.with_hidden_dropout(start, experiment.student_train.hidden_dropout)
    whole = models.load(experiment.dataset.architecture, start, how.needs_attention and bool(how.weight))
    student = models.keep_layers(whole, chosen)
    models.freeze(student, experiment.model.frozen)
    return student


def verify_saved(run: RunContext, pruned: Pruned) -> Verification:
    """Recount zeros and violations on the saved file. Raises VerificationError if they are not what the pruner made."""
    with run.cost.stage("save"):
        return verify(run.folder.model, run.experiment.dataset.architecture, pruned.layers)

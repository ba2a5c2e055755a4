"""Stage 5: who teaches the student: cached logits, a live teacher, or the labels alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner import models
from runner.config.experiment import Experiment
from runner.models.tokenizer import with_inputs
from runner.training.supervision import Supervision

if TYPE_CHECKING:
    from runner.stages.context import RunContext
    from runner.training.training_data import TrainingData


def teach(run: RunContext, dense: models.Checkpoint) -> Supervision:
    """The student's supervision: by the configured teacher, else by the dense model."""
    assert run.inputs.data is not None
    sources = run.inputs.sources
    with run.cost.stage("teacher"):
        supervision = supervision_of(run.experiment, run.inputs.data, sources.teacher or dense, sources.chosen)
    if supervision.logits is not None:
        run.stages["teacher"] = supervision.logits.checksum()
        run.note_circumstances("the teacher's logits", supervision.logits.spans)
    return supervision


def supervision_of(
    experiment: Experiment, data: TrainingData, teacher: models.Checkpoint, chosen: models.StudentLayers | None
) -> Supervision:
    """The supervision that an experiment asks for; the teacher's logits come from the cache or are computed now.

    Args:
        chosen: layers of the dense model that the student has; None: all.
    """
    from runner.training.teacher_logits import teacher_logits

    how, task = experiment.distillation(chosen), experiment.dataset
    if not has_teacher(experiment):
        return Supervision(how)
    if not caches_logits(experiment, data):
        return Supervision(how, models.load(task.architecture, teacher, how.needs_attention))
    assert experiment.train.precision is not None
    cache = Path(experiment.cache_dir) / "teacher"
    reader = with_inputs(data.tokenizer, data.teacher_inputs)
    logits = teacher_logits(teacher, reader, task, data.features, experiment.train.precision, cache)
    return Supervision(how, logits=logits)


def has_teacher(experiment: Experiment) -> bool:
    """Whether the student learns from a teacher."""
    return experiment.trains_student and experiment.distill.needs_teacher and bool(experiment.distill.weight)


def caches_logits(experiment: Experiment, data: TrainingData) -> bool:
    """Whether the teacher runs once over all features; not for less than an epoch, which needs only some of them."""
    how, training = experiment.distill, experiment.train
    whole_epoch = data.length(training).steps >= data.batches(training, experiment.seed).steps
    return has_teacher(experiment) and how.cache and not (how.needs_hidden or how.needs_attention) and whole_epoch

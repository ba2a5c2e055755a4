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
    """The student's supervision: by the configured teachers, else by the dense model."""
    assert run.inputs.data is not None
    sources = run.inputs.sources
    with run.cost.stage("teacher"):
        supervision = supervision_of(run.experiment, run.inputs.data, sources.teachers or [dense], sources.chosen)
    if supervision.logits is not None:
        run.stages["teacher"] = supervision.logits.checksum()
        for i, part in enumerate(supervision.logits.parts, start=1):
            run.note_circumstances(f"the logits of teacher {i}", part.spans)
        run.note_circumstances("the teacher's logits", supervision.logits.spans)
    return supervision


def supervision_of(
    experiment: Experiment, data: TrainingData, teachers: list[models.Checkpoint], chosen: models.StudentLayers | None
) -> Supervision:
    """The supervision that an experiment asks for; the teachers' logits come from the cache or are computed now.

    Args:
        chosen: layers of the dense model that the student has; None: all.
    """
    from runner.training.teacher_logits import joined, teacher_logits

    how, task = experiment.distillation(chosen), experiment.dataset
    if not has_teacher(experiment):
        return Supervision(how)
    if not caches_logits(experiment, data):
        first, *others = teachers
        live = models.load(task.architecture, first, how.needs_attention)
        return Supervision(how, live, others=tuple(models.load(task.architecture, other) for other in others))
    assert experiment.train.precision is not None
    cache = Path(experiment.cache_dir) / "teacher"
    logits = [
        teacher_logits(
            teacher, with_inputs(data.tokenizer, names), task, data.features, experiment.train.precision, cache
        )
        for teacher, names in zip(teachers, data.teacher_inputs, strict=True)
    ]
    return Supervision(how, logits=joined(logits))


def has_teacher(experiment: Experiment) -> bool:
    """Whether the student learns from a teacher."""
    return experiment.trains_student and experiment.distill.needs_teacher and bool(experiment.distill.weight)


def caches_logits(experiment: Experiment, data: TrainingData) -> bool:
    """Whether each teacher runs once over all features; not for less than an epoch, which needs only some of them."""
    how, training = experiment.distill, experiment.train
    whole_epoch = data.length(training).steps >= data.batches(training, experiment.seed).steps
    return has_teacher(experiment) and how.cache and not (how.needs_hidden or how.needs_attention) and whole_epoch

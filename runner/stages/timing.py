"""How long the trainings of a run would take, from a few real optimizer steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pruning import NoDistillation
from runner.config.training import Training
from runner.stages.prepare import Inputs
from runner.stages.prune import load_student
from runner.stages.teacher import caches_logits, has_teacher, supervision_of
from runner.system import files
from runner.training.supervision import Supervision

if TYPE_CHECKING:
    from runner.training.cost import TrainingStats
    from runner.training.training_data import TrainingData

STEPS = 6
"""Optimizer steps that are timed."""


def trainings(inputs: Inputs) -> list[tuple[str, Training]]:
    """The trainings of a run, by name; the fine-tuning unless its result is cached or given."""
    experiment = inputs.experiment
    both = [("pruning", experiment.train)] if experiment.trains_student else []
    if experiment.model.finetuned is None and not files.is_intact(inputs.dense_folder):
        both.append(("fine-tuning", experiment.finetune))
    return both


def tokens(inputs: Inputs, training: Training) -> float:
    """Tokens that a training of the run computes, padding included."""
    data = inputs.dense_data if training is inputs.experiment.finetune else inputs.data
    assert data is not None
    length, batches = data.length(training), data.batches(training, inputs.experiment.seed)
    return sum(data.features["length"]) / (1 - batches.padding()) * length.steps / batches.steps


def timed(inputs: Inputs, data: TrainingData, training: Training) -> TrainingStats:
    """Real optimizer steps of a training on a copy that is thrown away, with a live teacher if the run would have
    one."""
    from runner.training.job import TrainingJob
    from runner.training.loop import train

    experiment, sources = inputs.experiment, inputs.sources
    chosen = sources.chosen if training is experiment.train else None
    student = load_student(experiment, sources.sparse or sources.base, chosen)
    supervision = Supervision(NoDistillation())
    if has_teacher(experiment) and not caches_logits(experiment, data):
        supervision = supervision_of(experiment, data, sources.teachers or [sources.base], sources.chosen)
    few = replace(training, max_steps=min(STEPS, data.length(training).steps), save_steps=10**9, warmup_steps=0,
                  evaluate=None, patience=None, best_checkpoint=False)  # fmt: skip
    with TemporaryDirectory() as folder:
        return train(TrainingJob(student, data, few, supervision, None, experiment.seed, Path(folder), "Timing"))


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

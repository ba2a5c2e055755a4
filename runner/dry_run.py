"""What a run would do, without doing it: `dry_run=true`. Weights and data are loaded and features made; a few real
optimizer steps say how long it would take and how much memory. Nothing is logged or kept but what the caches keep.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pruning import NoDistillation, Plan, matrix_weights
from runner import models
from runner.config.experiment import Experiment, Origin
from runner.experiment import (
    Inputs,
    announce,
    check,
    find,
    fit,
    identity_of,
    keeps_logits,
    prepare,
    resolved,
    run_name,
    set_up_process,
    student_from,
    teaching_of,
)
from runner.system import files, ranks
from runner.system.device import peak_memory
from runner.system.disk import human_bytes
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.training.loop import TrainingData, TrainingStats

STEPS = 6
"""Optimizer steps that are timed."""

log = logging.getLogger(__name__)


def show(experiment: Experiment, origin: Origin) -> None:
    """Print what this run would do.

    Raises:
        UserError, PruningError: what the run would refuse.
    """
    if ranks.world_size() > 1:
        raise UserError("dry_run=true looks at one process: leave torchrun or accelerate launch out")
    set_up_process()
    experiment = resolved(experiment)
    sources = find(experiment)
    net = check(experiment, sources)
    examples = experiment.dataset.read(train=experiment.trains)
    fit(experiment, sources, examples)
    identity = identity_of(experiment, sources, examples)
    folder = Path(experiment.output_dir) / f"{run_name(origin.labels, experiment.seed)}-{identity.run[:8]}"
    inputs = prepare(experiment, sources, net, examples, identity, folder)
    announce(experiment, origin, inputs, folder)
    for line in (*state(experiment, inputs, folder), *layers(experiment, net), *course(inputs)):
        log.info("%s", line)
    if inputs.lesson is not None:
        for line in cost(experiment, inputs, net.num_parameters()):
            log.info("%s", line)
    log.info("nothing was trained (dry_run=true)")


def state(experiment: Experiment, inputs: Inputs, folder: Path) -> Iterator[str]:
    """What is there already."""
    if files.read_json(folder / "result.json") is not None:
        yield f"finished before: {folder}"
    dense = Path(experiment.cache_dir) / "dense" / inputs.identity.dense
    if experiment.model.finetuned:
        yield f"dense model: {inputs.base.path}, as given"
    elif files.is_intact(dense):
        yield f"dense model: found in {dense}"
    else:
        assert inputs.lesson is not None
        steps = inputs.lesson.length(experiment.finetune).steps
        yield f"dense model: fine-tuned first, {steps} optimizer steps, and kept in {dense}"


def layers(experiment: Experiment, net: PreTrainedModel) -> Iterator[str]:
    """What would be pruned, layers that are alike in one line; and what is left as it is, with the reason."""
    matrices = matrix_weights(net)
    everything = sum(weight.numel() for weight in matrices.values())
    if not experiment.prune:
        return
    plan = Plan(models.prunable_parameters(net, experiment.model), experiment.pattern, experiment.allocation)
    zeros = 0.0
    for group in plan.groups:
        target = group.pattern.target
        alike = Counter((models.kind_of(name), tuple(shape)) for name, shape in group.shapes.items())
        units = sum(group.units.values())
        zeros += target * sum(shape.numel() for shape in group.shapes.values())
        yield f"pattern {group.pattern}, target {target:g}: {len(group.shapes)} layers, {units:,} units"
        for (kind, shape), count in alike.items():
            yield f"  {count:>3} x {kind} {list(shape)}"
    reasons = Counter(plan.left.values())
    yield from (f"left dense: {count} layers: {reason}" for reason, count in reasons.items())
    outside = sorted(matrices.keys() - plan.shapes.keys())
    if outside:
        yield f"not candidates: {', '.join(name.removesuffix('.weight') for name in outside)}"
    yield f"zeros in the end: {zeros / everything:.4f} of all Linear and Conv weights"


def course(inputs: Inputs) -> Iterator[str]:
    """The mask updates: step and sparsity."""
    updates = list(inputs.updates.items())
    if updates:
        shown = updates if len(updates) <= 8 else [*updates[:4], *updates[-3:]]
        told = [f"{step}: {sparsity:.3f}" for step, sparsity in shown]
        if len(updates) > 8:
            told.insert(4, "...")
        yield f"sparsity by step: {', '.join(told)}"


def cost(experiment: Experiment, inputs: Inputs, parameters: int) -> Iterator[str]:
    """Memory and time, from a few real steps."""
    lesson = inputs.lesson
    assert lesson is not None
    trainings = [("pruning", experiment.train)] if experiment.prune else []
    dense = Path(experiment.cache_dir) / "dense" / inputs.identity.dense
    if experiment.model.finetuned is None and not files.is_intact(dense):
        trainings.append(("fine-tuning", experiment.finetune))
    work = timed(experiment, inputs, lesson)
    per_token = work.seconds / work.tokens
    yield f"memory: weights, gradients and AdamW's moments {human_bytes(16 * parameters)}" + _peak()
    for name, training in trainings:
        length, batches = lesson.length(training), lesson.batches(training, experiment.seed)
        tokens = sum(lesson.features["length"]) / (1 - batches.padding()) * length.steps / batches.steps
        yield (
            f"time of the {name}: about {duration(tokens * per_token)}, at {work.tokens / work.seconds:,.0f} tokens a "
            f"second over {work.steps} steps on this machine as busy as it is now; scoring and the teacher not included"
        )


def timed(experiment: Experiment, inputs: Inputs, lesson: TrainingData) -> TrainingStats:
    """Real optimizer steps, on a copy that is thrown away. A teacher runs beside if it would in the run."""
    from runner.training.loop import Supervision, silent, train

    training = experiment.train if experiment.prune else experiment.finetune
    student = student_from(experiment, inputs.sparse or inputs.base)
    teaching = Supervision(NoDistillation())
    if experiment.prune and experiment.distill.needs_teacher and not keeps_logits(experiment, lesson):
        teaching = teaching_of(experiment, lesson, inputs.teacher or inputs.base)
    few = replace(training, max_steps=min(STEPS, lesson.length(training).steps), save_steps=10**9, warmup_steps=0)
    with TemporaryDirectory() as folder:
        return train(student, lesson, few, teaching, None, experiment.seed, Path(folder), "Timing", silent)


def _peak() -> str:
    most = peak_memory()
    return "" if most is None else f"; this process held {human_bytes(most)} at most"


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

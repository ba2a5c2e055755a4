"""Stage 2: refuse what cannot be trained, pruned or compared, before data are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pruning import Coupled, Plan, PruningError, Weight, check_zeros, couple, matrix_weights
from runner import models
from runner.config.experiment import MEASURE, Experiment
from runner.models.tokenizer import check_vocabulary
from runner.models.vocabulary import check_embeddings
from runner.stages.benchmark import check_benchmark
from runner.stages.inputs import Sources
from runner.system.errors import UserError
from runner.training import projections

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pruning.masks import Masks

log = logging.getLogger(__name__)


@dataclass
class Checked:
    """What the checks of a request loaded or counted."""

    net: PreTrainedModel
    """The student's network, without memory for its weights."""
    zeros: list[str] = field(default_factory=list)
    """Log lines: how much is zero already, where zeros stay and count."""


def check(experiment: Experiment, sources: Sources) -> Checked:
    """Check the whole request.

    Raises:
        UserError, PruningError: it cannot be trained, pruned or compared.
    """
    model, architecture = experiment.model, experiment.dataset.architecture
    net = models.student_skeleton(architecture, sources.base.config, sources.chosen)
    models.freeze(net, model.frozen)
    student = models.with_hidden_dropout(sources.base, experiment.student_train.hidden_dropout)
    alike = net if student is sources.base else models.skeleton(architecture, student.config)
    check_gradient(experiment, alike, sources.chosen is None)
    check_benchmark(experiment, net)
    networks = [(sources.base, net)]
    check_teachers(sources.teachers)
    networks += [(teacher, models.skeleton(architecture, teacher.config)) for teacher in sources.teachers]
    for checkpoint, network in networks:
        models.check_positions(network, checkpoint, experiment.dataset.max_seq_length)
        check_embeddings(checkpoint, network)
    locks = False
    if experiment.prune:
        plan = plan_of(experiment, net)
        plan.check(experiment.schedule, experiment.regularizer, experiment.criterion)
        locks = any(group.pattern.locks for group in plan.groups)
    check_sparse(experiment, sources, net, locks)
    for checkpoint in (sources.base, *sources.others):
        models.check_weights(architecture, checkpoint)
    for other in sources.others:
        check_vocabulary(sources.base, other)
    projection_parameters(experiment, sources, net)
    starts_sparse = locks or (experiment.prune and model.sparse)
    return Checked(net, check_start(experiment, sources) if starts_sparse else [])


def plan_of(experiment: Experiment, net: PreTrainedModel) -> Plan:
    """What is pruned of a network, with or without weights. Raises UserError or PruningError if it cannot be."""
    parameters: dict[str, Weight] = {**models.prunable_parameters(net, experiment.model)}
    if isinstance(experiment.pattern, Coupled):
        parameters = couple(net, parameters, experiment.pattern, models.shape(net.config).heads)
    tokens = experiment.dataset.max_seq_length
    plan = Plan(parameters, experiment.pattern, experiment.allocation, experiment.keeps_zeros, tokens)
    layers = models.shape(net.config).layers
    if plan.table is not None and plan.table.layers != layers:
        raise UserError(
            f"allocation.latency={experiment.allocation.latency}: it was measured with {plan.table.layers} layers, and "
            f"the student has {layers}: {MEASURE} --layers {layers}"
        )
    return plan


def aimed(experiment: Experiment, net: PreTrainedModel) -> Experiment:
    """The experiment with the target sparsity that pattern.target_speedup asks for with this network."""
    if not experiment.prune or experiment.allocation.cost != "latency":
        return experiment
    return replace(experiment, pattern=plan_of(experiment, net).pattern)


def projection_parameters(experiment: Experiment, sources: Sources, net: PreTrainedModel) -> int:
    """Number of parameters of the projections that are trained with the student. Raises UserError or PruningError if
    student and teacher cannot be compared."""
    how = experiment.distillation(sources.chosen)
    if not (experiment.prune and how.needs_teacher and how.weight):
        return 0
    base = next(iter(sources.teachers), sources.base)
    alike = base is sources.base and sources.chosen is None
    teacher = net if alike else models.skeleton(experiment.dataset.architecture, base.config)
    return projections.check(how, net, teacher)


def check_teachers(teachers: Sequence[models.Checkpoint]) -> None:
    """Refuse a model that is among the teachers twice, also under two names."""
    names: dict[str, str] = {}
    for teacher in teachers:
        content = teacher.fingerprint
        if content in names:
            raise UserError(
                f"{teacher.place}: it is the model of {names[content]}, which would count twice; name each teacher once"
            )
        names[content] = teacher.path


def check_sparse(experiment: Experiment, sources: Sources, net: PreTrainedModel, locks: bool) -> None:
    """Refuse a sparse checkpoint that does not fit; `locks` says whether a layer has the pattern `locked`."""
    model, sparse, architecture = experiment.model, sources.sparse, experiment.dataset.architecture
    if model.sparse and not (locks or experiment.keeps_zeros):
        what = f"pattern={experiment.pattern}" if experiment.prune else "prune=false"
        raise UserError(
            f"model.sparse={model.sparse}: {what} would let its zeros come back; pattern=locked keeps them, and any "
            "other pattern adds to them"
        )
    if locks and not (model.sparse or model.finetuned):
        raise UserError("pattern=locked keeps the zeros of a checkpoint: name one with model.sparse")
    if sparse is None:
        return
    theirs, ours = (
        {name: tuple(p.shape) for name, p in of.base_model.named_parameters()}  # the head's shape is the task's
        for of in (models.student_skeleton(architecture, sparse.config, sources.chosen), net)
    )
    differs = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differs:
        raise UserError(
            f"model.sparse={model.sparse}: it is another network than the "
            f"{'student' if sources.chosen else 'dense model'}: {differs[0]} is "
            f"{theirs.get(differs[0], 'not there')}, not {ours.get(differs[0], 'there')}"
        )


def check_start(experiment: Experiment, sources: Sources) -> list[str]:
    """Refuse to keep the zeros of a checkpoint that has none, or with a pattern that they break. Loads its weights.

    Returns:
        `zeros_already`, where zeros stay and count.
    """
    start = sources.sparse or sources.base
    network = models.keep_layers(models.load(experiment.dataset.architecture, start), sources.chosen)
    plan = plan_of(experiment, network)
    held = {name for name, pattern in plan.patterns.items() if pattern.locks or plan.keeps_zeros}
    if all(bool(plan.parameters[name].detach().all()) for name in held):
        raise UserError(
            f"{start.place}: none of its {len(held)} prunable weights has a zero, so "
            + ("there is nothing to keep" if plan.keeps_zeros else "pattern=locked has nothing to keep")
            + "; name a sparse checkpoint with model.sparse, a dense one with model.finetuned"
        )
    try:
        masks = check_zeros(plan)
    except PruningError as error:
        raise PruningError(f"{start.place}: {error}", error.owner) from error
    others = [name for name, p in matrix_weights(network).items() if name not in plan.tensors and not bool(p.all())]
    if plan.keeps_zeros and others:
        log.warning("%s: %s (and %d more) has zeros, but is left out by model.prunable or model.excluded: it is "
                    "trained, and they do not stay", start.place, others[0], len(others) - 1)  # fmt: skip
    return zeros_already(start.place, plan, masks) if experiment.keeps_zeros else []


def zeros_already(place: str, plan: Plan, masks: Masks) -> list[str]:
    """How much of a checkpoint is zero already, a line for each group that is pruned further."""
    lines = []
    for group in plan.groups:
        if group.pattern.prunes:
            total = sum(shape.numel() for shape in group.shapes.values())
            zeros = sum(masks.zeros(name) for name in group.shapes)
            whole = sum(masks.pruned_units(name) * group.pattern.unit_zeros(s) for name, s in group.shapes.items())
            of = "the multiply-accumulates" if group.macs else "all of them, not of those that are left"
            lines.append(
                f"{place}: of the {total:,} weights in units of {group.pattern}, {zeros / total:.4f} are zero and stay "
                f"so; {whole / total:.4f} are in whole units, which count towards the target, "
                f"{group.pattern.target:g} of {of}"
            )
    return lines


def check_gradient(experiment: Experiment, net: PreTrainedModel, whole: bool = True) -> None:
    """Refuse a student that starts as an exact copy of its teacher without dropout or labels: its gradient is zero.

    Args:
        whole: whether it has all of its teacher's layers.
    """
    alike = experiment.distill.needs_teacher and not experiment.distill.teacher and not experiment.distill.label_weight
    alike = alike and not experiment.model.sparse and whole and experiment.train.takes_steps
    if not (experiment.prune and alike) or models.max_dropout(net) > 0:
        return
    what = None
    if not experiment.pattern.prunes:
        what = f"pattern={experiment.pattern} has nothing to learn"
    elif experiment.criterion.needs_gradient or experiment.criterion.needs_second_moment:
        what = f"{type(experiment.criterion).__name__} has nothing to rank weights by before the first are pruned"
    if what:
        raise UserError(
            f"{what}: the student starts as a copy of its teacher, and without label loss and dropout its gradient is "
            "zero; set distill.label_weight, train.hidden_dropout or another distill.teacher"
        )

"""Stage 2: refuse what cannot be trained, pruned or compared, before data are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pruning import Plan
from runner import models
from runner.config.experiment import Experiment
from runner.models.tokenizer import check_vocabulary
from runner.models.vocabulary import check_embeddings
from runner.stages.benchmark import check_benchmark
from runner.stages.inputs import Sources
from runner.system.errors import UserError
from runner.training import projections

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(experiment: Experiment, sources: Sources) -> PreTrainedModel:
    """Check the whole request.

    Returns:
        The network, without memory for its weights.

    Raises:
        UserError, PruningError: it cannot be trained, pruned or compared.
    """
    model, architecture = experiment.model, experiment.dataset.architecture
    net = models.skeleton(architecture, sources.base.config)
    check_gradient(experiment, net)
    check_benchmark(experiment, net)
    networks = [(sources.base, net)]
    if sources.teacher is not None:
        networks.append((sources.teacher, models.skeleton(architecture, sources.teacher.config)))
    for checkpoint, network in networks:
        models.check_positions(network, checkpoint, experiment.dataset.max_seq_length)
        check_embeddings(checkpoint, network)
    locked: list[str] = []
    if experiment.prune:
        plan = Plan(models.prunable_parameters(net, model), experiment.pattern, experiment.allocation)
        plan.check(experiment.schedule, experiment.regularizer, experiment.criterion)
        locked = [name for group in plan.groups if group.pattern.locks for name in group.shapes]
    check_sparse(model, sources.sparse, net, architecture, locked)
    for checkpoint in (sources.base, *sources.others):
        models.check_weights(architecture, checkpoint)
    for other in sources.others:
        check_vocabulary(sources.base, other)
    projection_parameters(experiment, sources, net)
    if locked:
        check_zeros(sources.sparse or sources.base, architecture, locked)
    return net


def projection_parameters(experiment: Experiment, sources: Sources, net: PreTrainedModel) -> int:
    """Number of parameters of the projections that are trained with the student. Raises UserError or PruningError if
    student and teacher cannot be compared."""
    how = experiment.distill
    if not (experiment.prune and how.needs_teacher and how.weight):
        return 0
    teacher = models.skeleton(experiment.dataset.architecture, sources.teacher.config) if sources.teacher else net
    return projections.check(how, net, teacher)


def check_sparse(
    model: models.Model,
    sparse: models.Checkpoint | None,
    net: PreTrainedModel,
    architecture: str,
    locked: list[str],
) -> None:
    """Refuse a sparse checkpoint that does not fit; `locked` are the weights whose zeros stay."""
    if model.sparse and not locked:
        raise UserError(
            f"model.sparse={model.sparse} is for pattern=locked, which keeps its zeros; any other pattern prunes the "
            "dense model (model.finetuned)"
        )
    if locked and not (model.sparse or model.finetuned):
        raise UserError("pattern=locked keeps the zeros of a checkpoint: name one with model.sparse")
    if sparse is None:
        return
    theirs, ours = (
        {name: tuple(p.shape) for name, p in of.base_model.named_parameters()}  # the head's shape is the task's
        for of in (models.skeleton(architecture, sparse.config), net)
    )
    differs = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    if differs:
        raise UserError(
            f"model.sparse={model.sparse}: it is another network than the dense model: {differs[0]} is "
            f"{theirs.get(differs[0], 'not there')}, not {ours.get(differs[0], 'there')}"
        )


def check_zeros(start: models.Checkpoint, architecture: str, locked: list[str]) -> None:
    """Refuse to lock the zeros of a checkpoint that has none."""
    weights = models.load(architecture, start).state_dict()
    if all(bool(weights[name].all()) for name in locked):
        raise UserError(
            f"{start.key}={start.path}: none of its {len(locked)} prunable weights has a zero, so pattern=locked has "
            "nothing to keep; name a sparse checkpoint with model.sparse"
        )


def check_gradient(experiment: Experiment, net: PreTrainedModel) -> None:
    """Refuse a student that starts as an exact copy of its teacher without dropout or labels: its gradient is zero."""
    alike = experiment.distill.needs_teacher and not experiment.distill.teacher and not experiment.distill.label_weight
    alike = alike and not experiment.model.sparse and experiment.train.takes_steps
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
            "zero; set distill.label_weight, model.hidden_dropout or another distill.teacher"
        )

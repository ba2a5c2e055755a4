"""Pruning without training: one call of OBS, or one calibration for several."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning.plan import Plan
from pruning.pruner import Pruner
from pruning.report import LayerReport
from pruning.schedules import OneShot, TrainingLength
from pruning.second_order.calibration import Calibration, collect
from pruning.second_order.criteria import OBS, refitted


def obs(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Any],
    loss: Callable[[Any, torch.Generator], Tensor],
    *,
    tokens: Callable[[Any], Tensor | None] | None = None,
    criterion: OBS | None = None,
) -> list[LayerReport]:
    """Prune a trained model to the plan's target without training, and update the weights that stay, in place.

    Args:
        batches: calibration data, from the training split; iterated once, or with `criterion.sequential` once more for
            each distinct layer input: a list then.
        loss: (batch, source of chance) -> the sum over the batch's examples of the loss on labels drawn from the
            model's own output.
        tokens: batch -> bool [batch, tokens], False at padding; if not given: everything counts.
        criterion: damping, rounds, the seed of the labels, and whether layers are pruned in sequence.

    Raises:
        PruningError: the target cannot be reached, or the calibration is not finite.
    """
    calibration = Calibration(model, batches, loss) if tokens is None else Calibration(model, batches, loss, tokens)
    pruner = Pruner(plan, OneShot("0"), TrainingLength(0), criterion or OBS(), calibration=calibration)
    pruner.update_now()
    pruner.check_reached()
    return pruner.report()


def obs_each(
    calibration: Calibration, plans: Sequence[Plan], criterion: OBS | None = None
) -> Iterator[tuple[Plan, list[LayerReport]]]:
    """Prune one trained model by each of some plans in turn, with one calibration; the same as `obs` with each alone.

    The model has a plan's zeros until the next is asked for. Then it has its first weights again, as at the end.

    Args:
        plans: of the model's own parameters.
        criterion: as `obs`.

    Raises:
        PruningError: as `obs`.
    """
    criterion, model = criterion or OBS(), calibration.model
    matrices = {name: p for plan in plans for name, p in refitted(plan).values()}
    known = replace(calibration, known=collect(calibration, matrices, criterion.seed))
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for plan in plans:
        pruner = Pruner(plan, OneShot("0"), TrainingLength(0), criterion, calibration=known)
        try:
            pruner.update_now()
            pruner.check_reached()
            yield plan, pruner.report()
        finally:
            model.load_state_dict(first)

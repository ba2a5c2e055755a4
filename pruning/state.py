"""The saved state of a pruner: tensors for safetensors, and texts for its metadata."""

import json
from collections.abc import Mapping

from torch import Tensor

from pruning.coupled import Weight
from pruning.criteria import Criterion
from pruning.errors import PruningError
from pruning.masks import Masks
from pruning.matrices import matrix_shape
from pruning.plan import Plan
from pruning.regularizers import Regularizer
from pruning.schedules import Schedule, TrainingLength
from pruning.scores import Scores


def identity(
    plan: Plan, criterion: Criterion, schedule: Schedule, length: TrainingLength, regularizer: Regularizer
) -> dict[str, str]:
    """What two pruners must agree on for one to take over the state of the other."""
    zeros = {"zeros": "held"} if plan.keeps_zeros else {}
    cost = {"cost": repr([group.macs for group in plan.groups])} if plan.allocation.cost != "parameters" else {}
    if plan.table is not None:
        cost = {"cost": f"latency {plan.table.fingerprint}"}
    return (
        zeros
        | cost
        | {
            "pattern": repr(plan.pattern),
            "criterion": repr(criterion) + (" in sequence" if getattr(criterion, "sequential", False) else ""),
            "allocation": repr(plan.allocation),
            "schedule": repr(schedule),
            "length": repr(length),
            "regularizer": repr(regularizer),
            "layers": json.dumps({name: _layout(p) for name, p in plan.parameters.items()}),
        }
    )


def _layout(weight: Weight) -> list[int]:
    """The shape of a weight in the order that `as_matrix` flattens, which masks and scores follow."""
    return list(weight.movedim(1, -1).shape if isinstance(weight, Tensor) and weight.dim() > 2 else weight.shape)


def check(tensors: Mapping[str, Tensor], values: Mapping[str, str], mine: Mapping[str, str]) -> None:
    """Raise PruningError, naming the first difference, if a saved state is incomplete or not of this pruner.

    Args:
        tensors, values: the saved state.
        mine: the `identity` of this pruner.
    """
    for key, value in mine.items():
        if values.get(key) != value:
            raise PruningError(f"the saved pruner differs in its {key}: {_difference(key, values.get(key), value)}")
    missing = [key for key in ("steps_taken", "last_update", "fractions", "history", "tensors") if key not in values]
    missing = missing or [key for key in json.loads(values["tensors"]) if key not in tensors]
    if missing:
        raise PruningError(f"the saved pruner lacks {missing[0]}")


def pack(scores: Scores, masks: Masks) -> dict[str, Tensor]:
    """The tensors of scores and masks under one name each."""
    tensors = {
        f"score/{key}/{name}": t.contiguous() for name, state in scores.state.items() for key, t in state.items()
    }
    tensors |= {f"single//{name}": t.contiguous() for name, t in masks.single.items()}
    return tensors | {f"mask//{name}": t.contiguous() for name, t in masks.items()}


def unpack(tensors: Mapping[str, Tensor], scores: Scores, masks: Masks, plan: Plan) -> None:
    """Copy what `pack` made into scores and masks.

    Raises:
        PruningError: a tensor belongs to no parameter, or has another shape; nothing is changed.
    """
    state: dict[str, dict[str, Tensor]] = {name: {} for name in plan.parameters}
    loaded: dict[str, Tensor] = {}
    single: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        kind, buffer, name = key.split("/", 2)
        expected = masks.shape(name) if name in plan.parameters else None
        if kind == "single" and expected is not None:
            expected = matrix_shape(plan.parameters[name].shape) if plan.keeps_zeros else None
        if tensor.shape != expected:
            raise PruningError(f"the saved pruner has {key} of shape {tuple(tensor.shape)}, not {expected}")
        copy = tensor.to(plan.parameters[name].device, copy=True)  # updated in place
        if kind in ("mask", "single"):
            (loaded if kind == "mask" else single)[name] = copy
        else:
            state[name][buffer] = copy
    scores.state = state
    masks.replace(loaded, single)


def _difference(key: str, there: str | None, here: str) -> str:
    """The first difference of two identities, in words."""
    if key != "layers" or there is None:
        return f"{there} there, {here} here"
    theirs, ours = json.loads(there), json.loads(here)
    name = min(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return f"{name} is {theirs.get(name, 'not pruned')} there, {ours.get(name, 'not pruned')} here"

"""The rise of the loss where one layer alone is pruned, at several sparsities, from the Hessians of one calibration."""

from collections.abc import Iterator, Sequence
from math import ceil, log

import torch

from pruning.blocks import Block
from pruning.errors import PruningError
from pruning.masks import Masks
from pruning.nofm import NofM
from pruning.plan import Plan
from pruning.second_order.calibration import Calibration
from pruning.second_order.criteria import OBS
from pruning.second_order.solver import LayerSolver
from pruning.second_order.update import SurvivorUpdate

_AT_ONCE = 1 / 3
"""The part of a layer's units that is pruned before costs are computed again, at most."""


def sensitivity(
    calibration: Calibration, plan: Plan, sparsities: Sequence[float], criterion: OBS | None = None
) -> dict[str, dict[float, float]]:
    """Estimate the rise of the loss for each layer alone, all others dense; no weight changes.

    The estimate is sum over outputs r of f_r e_r / 2 (second order, Fisher for Hessian; Hassibi and Stork 1993), with
    f_r as in `Statistics` and e_r the mean square error of the output after the survivors have adapted, damping
    included.

    Args:
        plan: its patterns count, not their targets.
        sparsities: for block patterns; N:M has its own.
        criterion: damping, and the seed of the labels.

    Returns:
        Parameter name -> sparsity -> the rise, a sum over the examples of the calibration. Layers that are not used, or
        whose outputs do not matter, are left out.

    Raises:
        PruningError: a sparsity is not between 0 and 1, a pattern is neither blocks nor N:M, or the calibration is not
            finite.
    """
    if not sparsities or not all(0 < sparsity < 1 for sparsity in sparsities):
        raise PruningError(f"sparsities={list(sparsities)} must lie between 0 and 1")
    for name, pattern, _ in plan.pruned():
        if not isinstance(pattern, (Block, NofM)):
            raise PruningError(f"{name}: a sensitivity is of blocks or N:M, not of {pattern}")
    solvers = SurvivorUpdate(calibration, plan, criterion or OBS(), Masks(plan.parameters, plan.patterns)).solvers
    losses = {}
    for name, layer in solvers.items():
        pattern = plan.patterns[name]
        if isinstance(pattern, NofM):
            losses[name] = {1 - pattern.n / pattern.m: _of_groups(layer, pattern)}
        else:
            losses[name] = _of_blocks(layer, sorted(set(sparsities)))
    return losses


def _of_groups(layer: LayerSolver, pattern: NofM) -> float:
    every = layer.alive.new_ones(len(layer.alive), layer.inputs // pattern.m)
    layer.alive = layer.alive & ~layer.columns_in_order(pattern.n, pattern.m, every)
    layer.solve()
    return _loss(layer)


def _of_blocks(layer: LayerSolver, sparsities: Sequence[float]) -> dict[float, float]:
    losses = {}
    costs = layer.solve(costs=True)
    stay = torch.ones_like(costs, dtype=torch.bool)
    for sparsity, asked in _path(sparsities):
        due = round(sparsity * stay.numel()) - int((~stay).count_nonzero())
        stay.view(-1)[costs.flatten().sort(stable=True).indices[: max(0, due)]] = False
        layer.alive = stay.repeat_interleave(layer.cols, 1)
        costs = layer.solve(costs=True)
        if asked:
            losses[sparsity] = _loss(layer)
    return losses


def _path(sparsities: Sequence[float]) -> Iterator[tuple[float, bool]]:
    """The rising sparsities with steps between them, each with whether it was asked for."""
    before = 0.0
    for sparsity in sparsities:
        left = (1 - sparsity) / (1 - before)
        steps = max(1, ceil(log(left) / log(1 - _AT_ONCE) - 1e-9))
        yield from ((1 - (1 - before) * left ** (step / steps), False) for step in range(1, steps))
        yield sparsity, True
        before = sparsity


def _loss(layer: LayerSolver) -> float:
    return float(layer.error().sum()) / 2

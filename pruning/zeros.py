"""Zeros that weights have before they are pruned. They stay, and count towards the target of whatever pattern follows.

Each zero is behind one of two masks: that of the pattern where a whole unit is zero, else one of single weights.
A unit of a block pattern that has both zeros and other values breaks the pattern, so such units are pruned first. One
that spans several matrices may have both.
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor

from pruning.coupled import Coupled
from pruning.errors import PruningError
from pruning.groups import Group
from pruning.masks import Masks
from pruning.matrices import as_matrix
from pruning.patterns import Pattern
from pruning.plan import Plan
from pruning.quotas import Quota
from pruning.selection import count_true


@torch.no_grad()
def hold(plan: Plan, masks: Masks) -> None:
    """Make masks of the zeros that weights have: those with the pattern `Locked`, or all if the plan keeps zeros.
    Weights that have a mask, of a restored state, keep it.

    Raises:
        PruningError: there is no zero, or a pattern cannot hold at its target with the zeros there are. No mask is set.
    """
    alive: dict[str, Tensor] = {}
    for group in plan.groups:
        if group.pattern.locks or plan.keeps_zeros:
            mine = {n: as_matrix(plan.parameters[n].detach()) != 0 for n in group.shapes if masks.get(n) is None}
            if group.pattern.prunes and len(mine) == len(group.shapes):
                _check(plan, group, mine)
            alive |= mine
    held = [name for name in plan.parameters if plan.keeps_zeros or plan.patterns[name].locks]
    if alive and len(alive) == len(held) and all(bool(weight.all()) for weight in alive.values()):
        who = "keeps_zeros=True" if plan.keeps_zeros else "Locked()"
        raise PruningError(
            f"{who}: none of the {len(alive)} weights has a zero to keep (such as {next(iter(alive))}); "
            "start from a sparse checkpoint"
        )
    for name, weight in alive.items():
        pattern = plan.patterns[name]
        masks.set(name, _some(pattern, weight))
        masks.set_single(name, weight)


def check_zeros(plan: Plan) -> Masks:
    """The masks that `Pruner.attach` would make of the zeros that weights have now. Raises PruningError as that."""
    masks = Masks(plan.parameters, plan.patterns, plan.keeps_zeros)
    hold(plan, masks)
    return masks


def unit_costs(plan: Plan, masks: Masks, name: str, score: Tensor, losers: Tensor) -> Tensor:
    """[units]: the cost of each unit of a weight.

    Where zeros stay, units that are pruned cost -inf, a zero costs nothing, and units that break the pattern cost less
    than any other: the cheapest least, spread alike over the layers.
    """
    pattern, mask = plan.patterns[name], masks.get(name)
    if mask is None or not plan.keeps_zeros:
        return pattern.cost(score, losers)
    cost = pattern.cost(score.masked_fill(~mask, 0.0), losers).masked_fill(pattern.pruned(mask), -torch.inf)
    broken = masks.broken(name)
    if broken is not None:
        order = cost[broken].argsort(stable=True).argsort()
        cost[broken] = torch.finfo(cost.dtype).min * (1 - order / (2 * len(order)))
    return cost


def budget(
    plan: Plan, masks: Masks, group: Group, fraction: float, names: Iterable[str]
) -> tuple[float, dict[str, Quota]]:
    """`Group.budget` of some layers, of which what is pruned stays so, unless `allocation.regrow`. Where zeros stay, a
    layer is pruned as far as these demand, whatever its cap.
    """
    fixed = not plan.allocation.regrow
    gone = {name: masks.pruned_units(name) if fixed and masks.get(name) is not None else 0 for name in names}
    due, quotas = group.budget(plan.allocation, fraction, gone)
    progress = fraction / group.pattern.unit_fraction(group.pattern.target)
    for name, quota in quotas.items() if plan.keeps_zeros else ():
        broken = masks.broken(name)
        count = 0 if broken is None else count_true(broken)
        quota.floor = max(quota.floor, quota.gone + int(count * progress + 1e-9))
        quota.cap = max(quota.most, quota.gone + count)
    return due, quotas


def _some(pattern: Pattern, alive: Tensor) -> Tensor:
    """bool [out, in] -> pooled bool: whether any weight behind an entry of the mask is alive."""
    return pattern.pool(alive.float(), torch.amax) > 0


def _check(plan: Plan, group: Group, alive: dict[str, Tensor]) -> None:
    """Raise PruningError if more units have to be pruned for the zeros there are than the target allows."""
    pattern, quotas = group.pattern, group.quotas(plan.allocation)
    whole = broken = needed = 0
    for name, weight in alive.items():
        some, every = _some(pattern, weight), pattern.pool(weight.float(), torch.amin) > 0
        gone, odd = count_true(pattern.pruned(some)), count_true(some & ~every)
        odd = 0 if isinstance(pattern, Coupled) else odd  # other zeros stay in units that are not pruned
        whole, broken = whole + gone, broken + odd
        needed += quotas[name].saves(max(quotas[name].floor, gone + odd))
    total = sum(quota.saves(quota.units) for quota in quotas.values())
    allowed, sizes = pattern.unit_fraction(pattern.target) * total, {quota.zeros for quota in quotas.values()}
    if group.saved:
        allowed += max(max(b - a for a, b in pairwise(times)) for times in group.saved.values())
    elif len(sizes) == 1:
        allowed = round(allowed / max(sizes)) * max(sizes)
    elif not broken:  # to within half a unit, as an update of rows or columns of several sizes prunes
        allowed += max(sizes) / 2
    if needed <= allowed + 1e-6:
        return
    least = needed / total * pattern.max_sparsity
    units = sum(quota.units for quota in quotas.values())
    raise PruningError(
        f"target_sparsity={pattern.target:g} cannot hold with the zeros that the weights have: of {units} units of "
        f"{pattern}, {whole} are zero and {broken} have a zero among other weights, and all of these have to be "
        f"pruned; the least is {least:.4f}" + ("" if least < 1 else ", so choose another pattern"),
        pattern,
    )

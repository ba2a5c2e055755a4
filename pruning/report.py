"""Reports: what the pruner did to each weight, and what each mask update changed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from pruning.coupled import Coupled, CoupledWeights, Weight, parts_of
from pruning.errors import PruningError
from pruning.groups import Group
from pruning.latency import TimePrediction
from pruning.masks import Masks
from pruning.matrices import as_matrix
from pruning.plan import Plan


@dataclass
class LayerReport:
    """What the pruner did to one weight."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    """The pattern's name; "" if the weight is left dense. Of a unit that spans several matrices, the block in this one,
    or 1x1 if the weight has zeros in other units too."""
    units: int
    """Units of the pattern in this weight; 0 if it is left dense."""
    pruned_units: int
    zeros: int
    """Weights that the mask sets to zero."""
    violations: int
    """Units of the weight itself that break the pattern."""
    skipped: str | None = None
    """Why the weight is left dense, if it is."""

    @property
    def sparsity(self) -> float:
        """Fraction of the weight that the mask sets to zero."""
        return self.zeros / math.prod(self.shape)


@dataclass
class MaskUpdate:
    """What one mask update changed."""

    step: int
    """Optimizer steps taken before the update."""
    sparsity: float
    """Sparsity after the update, over the layers that have the main pattern."""
    removed: dict[str, int]
    """Number of weights that the update pruned, by parameter name, where it is not 0."""
    returned: dict[str, int]
    """Number of weights that the update brought back, by parameter name. Empty unless `Allocation.regrow`."""

    def count(self, name: str, weight: Weight, before: Tensor | None, after: Tensor, regrow: bool) -> None:
        """Add a weight whose mask changes.

        Args:
            before, after: bool masks, True = not pruned; before is None if there was none.
            regrow: whether pruned weights may come back.
        """
        taken = int((~after if before is None else before & ~after).count_nonzero())
        back = int((after & ~before).count_nonzero()) if before is not None and regrow else 0
        for part, p in parts_of(name, weight):
            for entries, counts in ((taken, self.removed), (back, self.returned)):
                if entries:
                    counts[part] = entries * (p.numel() // after.numel())


def describe(plan: Plan, masks: Masks, unranked: dict[str, str]) -> list[LayerReport]:
    """One entry per weight, also for those left dense, in the order of their names; of coupled units one per parameter.

    Args:
        unranked: weights that could not be ranked, each with the reason.
    """
    rows = []
    for name, candidate in plan.candidates.items():
        skipped = plan.left.get(name, unranked.get(name))
        if isinstance(candidate, CoupledWeights):
            rows += _describe_parts(name, plan, masks, skipped)
            continue
        row = LayerReport(name, tuple(candidate.shape), "", 0, 0, 0, 0, skipped)
        rows.append(row)
        if row.skipped is not None:
            continue
        pattern, matrix = plan.patterns[name], as_matrix(candidate.detach())
        row.pattern, row.units = str(pattern), matrix.numel() // pattern.unit_size(matrix.shape)
        if masks.get(name) is not None:
            row.pruned_units = masks.pruned_units(name)
            row.zeros = masks.zeros(name)
            row.violations = pattern.violations(matrix)
    return sorted(rows, key=lambda row: row.name)


def _describe_parts(name: str, plan: Plan, masks: Masks, skipped: str | None) -> Iterator[LayerReport]:
    """One entry for each parameter of coupled units, by the block of it that belongs to a unit."""
    weight, mask = plan.candidates[name], masks.get(name)
    zeros = masks.zeros_of_parts(name) if mask is not None else {}
    for part in weight.parts if isinstance(weight, CoupledWeights) else ():
        row = LayerReport(part.name, tuple(part.parameter.shape), "", 0, 0, 0, 0, skipped)
        yield row
        if skipped is not None:
            continue
        tensor, block, size = part.parameter.detach(), part.block, part.size // part.repeat
        row.zeros = zeros.get(part.name, 0)
        row.pattern, row.units = str(block), part.units * part.repeat
        row.pruned_units = int(plan.patterns[name].pruned(mask).sum()) * part.repeat if mask is not None else 0
        if not isinstance(plan.patterns[name], Coupled):
            row.pattern, row.units, row.pruned_units = str(plan.patterns[name]), tensor.numel(), row.zeros
        elif row.zeros > row.pruned_units * size:  # zeros that the weight had before
            row.pattern, row.units, row.pruned_units = "1x1", tensor.numel(), row.zeros
        elif mask is not None:
            row.violations = block.violations(tensor)


def check_targets(plan: Plan, report: list[LayerReport], masks: Masks) -> None:
    """Raise PruningError if a pattern did not reach its target over the layers that could be pruned."""
    rows = {row.name: row for row in report if row.skipped is None}
    for group in plan.groups:
        if not group.pattern.prunes:
            continue
        if group.saved:
            _check_time(group, masks)
            continue
        parts = {name: [part for part, _ in parts_of(name, plan.parameters[name])] for name in group.shapes}
        of_group = [(rows[part], group.rate(name)) for name in parts for part in parts[name] if part in rows]
        elements = sum(math.prod(row.shape) * rate for row, rate in of_group)
        zeros = sum(row.zeros * rate for row, rate in of_group)
        unit = max(group.pattern.unit_size(shape) * group.rate(name) for name, shape in group.shapes.items())
        if group.pattern.target * elements - zeros > unit * len(parts):  # uniform rounds each layer
            raise PruningError(
                f"pattern {group.pattern}: sparsity is {zeros / elements:g}, not {group.pattern.target:g}, over the "
                "layers that could be pruned"
            )


def _check_time(group: Group, masks: Masks) -> None:
    """Raise PruningError if less time is saved than the target asks for, over the layers that could be pruned."""
    ranked = {name: times for name, times in group.saved.items() if masks.get(name) is not None}
    saved = sum(times[masks.pruned_units(name)] for name, times in ranked.items())
    total = sum(times[-1] for times in ranked.values())
    if saved < group.pattern.target * total * (1 - 1e-6):
        raise PruningError(
            f"pattern {group.pattern}: {saved / total:g} of the time of its units is saved, not "
            f"{group.pattern.target:g}, over the layers that could be pruned"
        )


def predict(plan: Plan, masks: Masks) -> TimePrediction | None:
    """The time of the model once what the masks prune is cut out; None without a table of times."""
    return plan.predict({name: masks.pruned_units(name) for name, _ in masks.items() if plan.patterns[name].prunes})

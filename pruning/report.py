"""Reports: what the pruner did to each weight, and what each mask update changed."""

import math
from dataclasses import dataclass

from torch import Tensor

from pruning.errors import PruningError
from pruning.masks import Masks
from pruning.plan import Plan, as_matrix


@dataclass
class LayerReport:
    """What the pruner did to one weight."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    """The pattern's name; "" if the weight is left dense."""
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

    def count(self, name: str, before: Tensor | None, after: Tensor, weights: int, regrow: bool) -> None:
        """Add a parameter whose mask changes.

        Args:
            before, after: bool masks, True = not pruned; before is None if there was none.
            weights: number of weights behind each entry of the mask.
            regrow: whether pruned weights may come back.
        """
        taken = ~after if before is None else before & ~after
        if removed := int(taken.count_nonzero()):
            self.removed[name] = removed * weights
        if before is not None and regrow and (returned := int((after & ~before).count_nonzero())):
            self.returned[name] = returned * weights


def describe(plan: Plan, masks: Masks, unranked: dict[str, str]) -> list[LayerReport]:
    """One entry per weight, also for those left dense, in the order of their names.

    Args:
        unranked: weights that could not be ranked, each with the reason.
    """
    rows = []
    for name, candidate in plan.candidates.items():
        row = LayerReport(name, tuple(candidate.shape), "", 0, 0, 0, 0, plan.left.get(name, unranked.get(name)))
        rows.append(row)
        if row.skipped is not None:
            continue
        pattern, matrix = plan.patterns[name], as_matrix(candidate.detach())
        row.pattern, row.units = str(pattern), matrix.numel() // pattern.unit_size(matrix.shape)
        if masks.get(name) is not None:
            row.pruned_units = masks.pruned_units(name)
            row.zeros = masks.zeros(name)
            row.violations = pattern.violations(matrix)
    return rows


def check_targets(plan: Plan, report: list[LayerReport]) -> None:
    """Raise PruningError if a pattern did not reach its target over the layers that could be pruned."""
    rows = {row.name: row for row in report if row.skipped is None}
    for group in plan.groups:
        of_group = [rows[name] for name in group.shapes if name in rows and group.pattern.prunes]
        elements, zeros = sum(math.prod(row.shape) for row in of_group), sum(row.zeros for row in of_group)
        unit = max((math.prod(row.shape) / row.units for row in of_group), default=0)
        if group.pattern.target * elements - zeros > unit * len(of_group):  # uniform rounds each layer
            raise PruningError(
                f"pattern {group.pattern}: sparsity is {zeros / elements:g}, not {group.pattern.target:g}, over the "
                "layers that could be pruned"
            )

"""Groups: layers of a plan that share one budget."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from pruning.allocation import Allocation
from pruning.patterns import Pattern
from pruning.quotas import Quota


@dataclass
class Group:
    """Layers that share a pattern, a target and a criterion, and so one budget."""

    pattern: Pattern
    shapes: dict[str, torch.Size]
    """The matrix shape of each layer, sorted by parameter name."""
    criterion: str | None = None
    """The name of the criterion; None: the main one."""
    macs: dict[str, int] = field(default_factory=dict)
    """Multiply-accumulates of a unit of each layer; empty where units are counted by their weights."""
    saved: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Milliseconds that each layer saves with 0, 1, ... units pruned; empty where units are not counted by time."""

    @property
    def key(self) -> str:
        """What the group is saved under."""
        return repr(self.pattern) + (f" by {self.criterion}" if self.criterion else "")

    @property
    def units(self) -> dict[str, int]:
        """Units of the pattern in each layer."""
        return {name: shape.numel() // self.pattern.unit_size(shape) for name, shape in self.shapes.items()}

    def rate(self, name: str) -> float:
        """Cost of each weight of a layer: 1, or its share of the multiply-accumulates. Where the budget is time: its
        share of a unit, so that a score divided by it is what the whole unit is worth."""
        size = self.pattern.unit_size(self.shapes[name])
        return 1 / size if name in self.saved else self.macs[name] / size if name in self.macs else 1.0

    def quotas(self, allocation: Allocation, progress: float = 1.0) -> dict[str, Quota]:
        """How many units of each layer may be pruned when this part of the target is due."""
        zeros = {name: self.macs.get(name, self.pattern.unit_zeros(shape)) for name, shape in self.shapes.items()}
        return allocation.quotas(self.units, zeros, self.pattern.max_sparsity, progress, self.saved)

    def budget(
        self, allocation: Allocation, fraction: float, gone: Mapping[str, int], due: float | None = None
    ) -> tuple[float, dict[str, Quota]]:
        """The fraction of units to prune and the quotas of some layers: rounding, or a layer that can no longer be
        ranked, may ask for less than is pruned already.

        Args:
            gone: layer -> units that are pruned and stay so.
            due: the fraction on the way to `fraction`; None: that itself.
        """
        quotas = self.quotas(allocation, fraction / self.pattern.unit_fraction(self.pattern.target))
        quotas = {name: quotas[name] for name in gone}
        for name, quota in quotas.items():
            quota.gone = gone[name]
        due = fraction if due is None else due
        if self.saved:  # the choice by time begins with what is pruned
            return due, quotas
        total = sum(quota.units * quota.zeros for quota in quotas.values())
        pruned = sum(quota.gone * quota.zeros for quota in quotas.values()) / total
        return max(due, pruned), quotas

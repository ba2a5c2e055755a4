"""Groups: layers of a plan that share one budget."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pruning.allocation import Allocation
from pruning.errors import PruningError
from pruning.overrides import LayerOverride
from pruning.patterns import Pattern
from pruning.quotas import Quota
from pruning.schedules import Schedule


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
    schedule: dict[str, Any] = field(default_factory=dict)
    """Fields of the main schedule that differ."""
    allocation: str | None = None
    """The name of the allocation; None: the main one."""

    @classmethod
    def of(cls, pattern: Pattern, override: LayerOverride) -> "Group":
        """A group without layers. A pattern that prunes nothing has no use for the exceptions."""
        if not pattern.prunes:
            return cls(pattern, {})
        return cls(pattern, {}, override.criterion, schedule=override.schedule or {}, allocation=override.allocation)

    @property
    def key(self) -> str:
        """What the group is saved under."""
        return repr(self.pattern) + "".join(f" {exception}" for exception in self.exceptions)

    @property
    def exceptions(self) -> list[str]:
        """Criterion, allocation and schedule in words, as far as they are not the main ones."""
        named = [f"by {self.criterion}"] if self.criterion else []
        named += [f"spread {self.allocation}"] if self.allocation else []
        return named + [f"{key}={self.schedule[key]}" for key in sorted(self.schedule)]

    @property
    def place(self) -> str:
        """The place where an exception for these layers is given, in words."""
        return f"allocation.layers, for {next(iter(self.shapes))}"

    def own_schedule(self, main: Schedule) -> Schedule:
        """The main schedule with the exceptions of the group. Raises PruningError if it cannot have them."""
        if not self.schedule:
            return main
        known = {each.name: getattr(main, each.name) for each in dataclasses.fields(main)}
        kind = type(main).__name__
        for name in self.schedule:
            if name not in known:
                raise PruningError(
                    f"{self.place}: schedule.{name}={self.schedule[name]}: {kind} has no {name}; it has "
                    f"{', '.join(known)}"
                )
        given = {
            name: str(value) if value is not None and isinstance(known[name], str | None) else value
            for name, value in self.schedule.items()
        }
        try:
            return dataclasses.replace(main, **given)
        except PruningError as error:
            raise PruningError(f"{self.place}: {error}") from error

    def check_schedule(self, main: Schedule) -> None:
        """Raise PruningError if the group's schedule does not fit its target."""
        own = self.own_schedule(main)
        try:
            own.sparsity(0.0, self.pattern.target)
        except PruningError as error:
            raise PruningError(f"{self.place}: {error}", error.owner if own is main else None) from error

    def own_allocation(self, main: Allocation) -> Allocation:
        """The group's allocation, with the bounds of the main one."""
        return main if self.allocation is None else main.spread(self.allocation)

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

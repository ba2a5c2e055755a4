"""Allocation: one budget of units to prune, spread over many weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import PruningError


def lowest(cost: Tensor, count: int) -> Tensor:
    """Bool mask of exactly the `count` lowest of a one-dimensional `cost`; among equals the first by index.

    Linear in time: one selection of the threshold, then the ties are filled up in order. NaN counts as +inf.
    """
    if count <= 0:
        return torch.zeros_like(cost, dtype=torch.bool)
    if count >= cost.numel():
        return torch.ones_like(cost, dtype=torch.bool)
    cost = cost.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # NaN equals nothing: no tie to fill up
    threshold = cost.kthvalue(count).values
    chosen = cost < threshold
    ties = torch.nonzero(cost == threshold).flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


@dataclass
class Allocation:
    """Base of allocations. The cap keeps a layer from being wiped out."""

    max_per_layer: float = 0.98
    """No layer gets a higher sparsity than this fraction."""

    def __post_init__(self) -> None:
        if not 0 < self.max_per_layer <= 1:
            raise PruningError(f"allocation.max_per_layer={self.max_per_layer} is out of range: between 0 and 1")

    def caps(self, units: Mapping[str, int], max_sparsity: float) -> dict[str, int]:
        """The most units that may be pruned in each layer; `max_sparsity` is that of a layer with all units pruned."""
        fraction = min(1.0, self.max_per_layer / max_sparsity) if max_sparsity else 0.0
        return {name: math.floor(fraction * count + 1e-9) for name, count in units.items()}

    def check(self, units: Mapping[str, int], fraction: float, max_sparsity: float) -> None:
        """Raise PruningError, naming the maximum, if the caps do not let `fraction` of the units be pruned."""
        reachable = sum(self.caps(units, max_sparsity).values())
        total = sum(units.values())
        if round(fraction * total) > reachable:
            raise PruningError(
                f"target sparsity {fraction * max_sparsity:g} is above what allocation.max_per_layer="
                f"{self.max_per_layer:g} allows for these layers: at most {reachable / total * max_sparsity:.4f}"
            )

    def select(self, costs: Mapping[str, Tensor], fraction: float, caps: Mapping[str, int]) -> dict[str, Tensor]:
        """Which units to prune, as a bool mask per layer.

        Args:
            costs: [units] per parameter name, on one device. -inf marks units that are pruned already.
            fraction: of all units, to be pruned.
            caps: the most units that may be pruned in each layer.
        """
        raise NotImplementedError


@dataclass
class Global(Allocation):
    """Units are ranked over all layers together: exactly `round(fraction * units)` of them go."""

    def select(self, costs: Mapping[str, Tensor], fraction: float, caps: Mapping[str, int]) -> dict[str, Tensor]:
        names = sorted(costs)  # ties break by (name, index), whatever the order given
        flat = torch.cat([costs[name] for name in names])
        chosen = torch.cat([lowest(costs[name], caps[name]) for name in names])  # no layer may lose more than these
        chosen[chosen.clone()] = lowest(flat[chosen], round(fraction * flat.numel()))
        return dict(zip(names, chosen.split([costs[name].numel() for name in names]), strict=True))


@dataclass
class Uniform(Allocation):
    """Every layer gets the target, each to its nearest unit."""

    def select(self, costs: Mapping[str, Tensor], fraction: float, caps: Mapping[str, int]) -> dict[str, Tensor]:
        return {name: lowest(cost, min(round(fraction * cost.numel()), caps[name])) for name, cost in costs.items()}

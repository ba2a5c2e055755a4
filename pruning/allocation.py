"""Allocations: how one budget of units to prune is spread over many weights."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from pruning.criteria import named as criterion_of
from pruning.errors import PruningError
from pruning.latency import LatencyTable, select_by_time, select_evenly
from pruning.overrides import LayerOverride, matches, merged
from pruning.quotas import Quota
from pruning.selection import count_true, lowest


@dataclass
class Allocation:
    """Base of allocations. The cap keeps a layer from being pruned away."""

    max_per_layer: float = 0.98
    """No layer gets a higher sparsity than this fraction."""
    min_per_layer: float = 0.0
    """No layer ends with a lower sparsity than this fraction, to within a unit; before the last update, the part of it
    that is due then."""
    regrow: bool = False
    """Let pruned units come back, as zeros, if a later update scores them higher. Otherwise they stay pruned."""
    layers: dict[str, LayerOverride] = field(default_factory=dict)
    """Exceptions by shell pattern of layer names: pattern, target, frozen, excluded, max_per_layer, criterion, schedule
    or allocation. Of several that match, each sets what it names, later ones first."""
    cost: str = field(default="parameters", repr=False)
    """What the target is a fraction of, and what units of several sizes are ranked by: parameters, macs or latency.
    Multiply-accumulates differ for attention heads only: their products of tokens with tokens count too. Latency is the
    time of heads and channels, as measured, above that of the one that is always left."""
    latency: str | None = field(default=None, repr=False)
    """File with the times of this model, for cost=latency."""

    def __post_init__(self) -> None:
        if self.cost not in ("parameters", "macs", "latency"):
            raise PruningError(f"cost={self.cost!r} must be parameters, macs or latency", self)
        if not 0 < self.max_per_layer <= 1:
            raise PruningError(f"max_per_layer={self.max_per_layer} must be in (0, 1]", self)
        if not 0 <= self.min_per_layer <= self.max_per_layer:
            raise PruningError(
                f"min_per_layer={self.min_per_layer} must be from 0 to max_per_layer={self.max_per_layer:g}", self
            )
        for name, override in self.layers.items():
            self._check_override(f"layers[{name!r}]", override)

    def table(self) -> LatencyTable:
        """The times in the file `latency`. Raises PruningError if it has none."""
        assert self.latency is not None
        try:
            return LatencyTable.read(self.latency)
        except PruningError as error:
            raise PruningError(f"latency={error}", self) from error

    def _check_override(self, place: str, override: LayerOverride) -> None:
        if override.target is not None and not 0 < override.target < 1:
            raise PruningError(f"{place}.target={override.target} must be in (0, 1)", self)
        cap = override.max_per_layer
        if cap is not None and not (0 < cap <= 1 and cap >= self.min_per_layer):
            raise PruningError(
                f"{place}.max_per_layer={cap} must be in (0, 1] and at least min_per_layer={self.min_per_layer:g}", self
            )
        if override.allocation is not None and override.allocation not in _kinds():
            raise PruningError(
                f"{place}.allocation={override.allocation}: there is no such allocation; write "
                f"{' or '.join(sorted(_kinds()))}",
                self,
            )
        if override.criterion is None:
            return
        try:
            own = criterion_of(override.criterion)
        except PruningError as error:
            raise PruningError(f"{place}.criterion={override.criterion}: {error}", self) from error
        if own.needs_calibration:
            raise PruningError(
                f"{place}.criterion={override.criterion} reads calibration data, which is for all layers or none: make "
                "it the main criterion",
                self,
            )

    def override(self, *names: str) -> LayerOverride:
        """The exceptions for a parameter with these names, merged. Its layer is its name without the last part."""
        return merged(override for pattern, override in self.layers.items() if any(matches(pattern, n) for n in names))

    def spread(self, name: str) -> "Allocation":
        """An allocation of this name with the bounds of this one."""
        return _kinds()[name](**{each.name: getattr(self, each.name) for each in fields(Allocation)})

    def check_names(self, parameters: Iterable[str]) -> None:
        """Raise PruningError if a name in `layers` matches no parameter."""
        known = sorted(parameters)
        for pattern in self.layers:
            if not any(matches(pattern, name) for name in known):
                raise PruningError(
                    f"layers[{pattern!r}] matches no layer (such as "
                    f"{', '.join(name.rpartition('.')[0] for name in known[:3])}; * matches any text)",
                    self,
                )

    def quotas(
        self,
        units: Mapping[str, int],
        zeros: Mapping[str, int],
        max_sparsity: float,
        progress: float = 1.0,
        saved: Mapping[str, tuple[float, ...]] | None = None,
    ) -> dict[str, Quota]:
        """The quota of each layer.

        Args:
            units: of each layer.
            zeros: weights that a pruned unit of each layer sets to zero.
            max_sparsity: of a layer with all units pruned.
            progress: the part of the final sparsity that is due, for the floors.
            saved: see `Quota.saved`.
        """
        caps = {name: self.override(name).max_per_layer or self.max_per_layer for name in units}
        most = {name: min(1.0, cap / max_sparsity) if max_sparsity else 0.0 for name, cap in caps.items()}
        least = min(1.0, self.min_per_layer / max_sparsity) * progress if max_sparsity else 0.0
        return {
            name: Quota(
                count,
                zeros[name],
                math.floor(least * count + 1e-9),
                math.floor(most[name] * count + 1e-9),
                saved=saved.get(name) if saved else None,
            )
            for name, count in units.items()
        }

    def check(self, quotas: Mapping[str, Quota], fraction: float, max_sparsity: float) -> None:
        """Raise PruningError, naming the bound, if the quotas do not let `fraction` of the weights be pruned."""
        total = sum(q.saves(q.units) for q in quotas.values())
        if not total:
            return
        unit = max(q.zeros if q.saved is None else 0 for q in quotas.values())
        reachable = sum(q.saves(q.most) for q in quotas.values())
        needed = sum(q.saves(q.floor) for q in quotas.values())
        target = fraction * max_sparsity
        capped = any(override.max_per_layer is not None for override in self.layers.values())
        also = ", with its exceptions in layers," if capped else ""
        if fraction * total - reachable > unit / 2 + 1e-6:
            raise PruningError(
                f"target sparsity {target:g} is above what max_per_layer={self.max_per_layer:g}{also} allows for "
                f"these layers: at most {reachable / total * max_sparsity:.4f}",
                self,
            )
        if needed - fraction * total > unit / 2 + 1e-6:
            raise PruningError(
                f"target sparsity {target:g} is below what min_per_layer={self.min_per_layer:g} demands of these "
                f"layers: at least {needed / total * max_sparsity:.4f}",
                self,
            )

    @abstractmethod
    def select(self, costs: Mapping[str, Tensor], fraction: float, quotas: Mapping[str, Quota]) -> dict[str, Tensor]:
        """Which units to prune, as a bool mask per layer.

        Args:
            costs: [units] per parameter name, on one device. -inf marks units that are pruned already.
            fraction: of all weights that can be pruned, to be pruned.
            quotas: of each layer.
        """
        raise NotImplementedError


def _kinds() -> dict[str, type[Allocation]]:
    """The allocations by name."""
    return {kind.__name__.lower(): kind for kind in Allocation.__subclasses__()}


@dataclass
class Global(Allocation):
    """Units are ranked over all layers together; exactly `round(fraction * units)` of them are pruned.

    Where units differ in size from layer to layer (whole rows, whole columns), the ranking is walked until the number
    of zeros is as near as whole units allow; where the budget is time, until enough of it is saved.
    """

    def select(self, costs: Mapping[str, Tensor], fraction: float, quotas: Mapping[str, Quota]) -> dict[str, Tensor]:
        if any(quotas[name].saved is not None for name in costs):
            return select_by_time(costs, fraction, quotas)
        names = sorted(costs)  # ties break by (name, index), whatever the order given
        flat = torch.cat([_floored(costs[name], quotas[name]) for name in names])
        sizes = [quotas[name].units for name in names]
        most = [quotas[name].most for name in names]
        if len({quotas[name].zeros for name in names}) == 1:
            gone = sum(quotas[name].gone for name in names)
            chosen = self._ranked(flat, round(fraction * flat.numel()), gone, sizes, most)
        else:
            allowed = torch.cat([lowest(cost, cap) for cost, cap in zip(flat.split(sizes), most, strict=True)])
            zeros = torch.cat([torch.full((quotas[n].units,), quotas[n].zeros, device=flat.device) for n in names])
            chosen = allowed.clone()
            chosen[allowed] = _nearest(flat[allowed], zeros[allowed], fraction * float(zeros.sum()))
        return dict(zip(names, chosen.split(sizes), strict=True))

    def _ranked(self, flat: Tensor, count: int, gone: int, sizes: list[int], most: list[int]) -> Tensor:
        """The `count` lowest of all, with at most so many of each layer; `gone` are -inf, and `flat` is used up.

        Layers that exceed their cap are held to it: the units above it get an infinite cost. That can only raise the
        threshold, so a layer once held stays full. Rarely it pushes another layer over its cap; then all layers are
        held. Costs that were infinite before are distinguished last.
        """
        layers, held = flat.split(sizes), [False] * len(sizes)
        for again in (False, True, True):
            chosen = lowest(flat, count, gone)
            full = [count_true(mask) > cap for mask, cap in zip(chosen.split(sizes), most, strict=True)]
            if not any(full):
                return chosen
            for i, cost in enumerate(layers):
                if (full[i] or again) and not held[i]:
                    cost.masked_fill_(lowest(cost, most[i]).logical_not_(), math.inf)
                    held[i] = True
        allowed = torch.cat([lowest(cost, cap) for cost, cap in zip(layers, most, strict=True)])
        chosen = allowed.clone()
        chosen[allowed] = lowest(flat[allowed], count)
        return chosen


def _floored(cost: Tensor, quota: Quota) -> Tensor:
    """The cost, below all others for as many units as the floor demands; units pruned already stay at -inf."""
    if quota.floor <= quota.gone:
        return cost
    return cost.masked_fill(lowest(cost, quota.floor) & (cost != -math.inf), torch.finfo(cost.dtype).min)


def _nearest(cost: Tensor, zeros: Tensor, budget: float) -> Tensor:
    """The cheapest units, as many as bring the number of zeros nearest to the budget."""
    order = cost.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).sort(stable=True).indices
    reached = torch.cat([zeros.new_zeros(1), zeros[order].cumsum(0)])
    count = int((reached.double() - budget).abs().argmin())
    chosen = torch.zeros_like(cost, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


@dataclass
class Uniform(Allocation):
    """Every layer gets the target, to within a unit, so that the whole meets it to the unit."""

    def select(self, costs: Mapping[str, Tensor], fraction: float, quotas: Mapping[str, Quota]) -> dict[str, Tensor]:
        if any(quotas[name].saved is not None for name in costs):
            return select_evenly(costs, fraction, quotas)
        mine = {name: quota for name, quota in quotas.items() if name in costs}
        counts = {n: min(max(round(fraction * q.units), q.floor, q.gone), q.most) for n, q in mine.items()}
        self._settle(counts, fraction, mine)
        return {name: lowest(cost, counts[name]) for name, cost in costs.items()}

    def _settle(self, counts: dict[str, int], fraction: float, quotas: Mapping[str, Quota]) -> None:
        """Give and take single units, where the rounding erred most, until the sum is right.

        That is to the unit where units have one size, else to within half of the largest.
        """
        zeros = {name: quotas[name].zeros for name in counts}
        if len(set(zeros.values())) == 1:
            zeros = dict.fromkeys(counts, 1)
            missing = round(fraction * sum(quotas[name].units for name in counts)) - sum(counts.values())
        else:
            missing = sum((fraction * quotas[name].units - count) * zeros[name] for name, count in counts.items())
        step = 1 if missing > 0 else -1
        while abs(missing) > max(zeros.values()) / 2 + 1e-9:
            room = {
                name: step * (fraction * quotas[name].units - count)
                for name, count in counts.items()
                if max(quotas[name].floor, quotas[name].gone) <= count + step <= quotas[name].most
            }
            if not room:
                return
            name = min(room, key=lambda n: (-room[n], n))
            counts[name] += step
            missing -= step * zeros[name]

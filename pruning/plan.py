"""Plans: which weights are pruned, by which pattern and to which target, and why the others are not."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from copy import copy

import torch
from torch import nn

from pruning.allocation import Allocation, Global
from pruning.coupled import Coupled, CoupledWeights, Weight, parts_of
from pruning.criteria import Criterion
from pruning.criteria import named as criterion_of
from pruning.errors import PruningError, expects
from pruning.groups import Group
from pruning.latency import TimePrediction, share_for
from pruning.matrices import matrix_shape
from pruning.overrides import LayerOverride
from pruning.patterns import Locked, Pattern, parse
from pruning.regularizers import Regularizer
from pruning.schedules import Schedule

log = logging.getLogger(__name__)


def misfit(pattern: Pattern, shape: torch.Size) -> str | None:
    """Why a weight of this shape cannot take the pattern, or None if it can: the matrix of each tap has to fit."""
    return pattern.misfit(shape[:2])


def _misfit(pattern: Pattern, weight: Weight) -> str | None:
    """Why a candidate cannot take the pattern, or None if it can."""
    if isinstance(weight, CoupledWeights) and pattern.prunes and not isinstance(pattern, Coupled):
        return f"its weights are pruned in units of several matrices, not by {pattern}"
    if isinstance(pattern, Coupled) and not isinstance(weight, CoupledWeights):
        return f"it belongs to no unit of {pattern}"
    return misfit(pattern, weight.shape)


def budgeted(pattern: Pattern, allocation: Allocation) -> Allocation:
    """The allocation with the cost that the pattern's target implies: time, for a target that is a speed-up.

    Raises:
        PruningError: they contradict each other.
    """
    speedup = pattern.target_speedup if isinstance(pattern, Coupled) else None
    if speedup is not None:
        if allocation.latency is None:
            raise PruningError(f"target_speedup={speedup:g} needs times: give the allocation a latency=FILE", pattern)
        if allocation.cost == "macs":
            raise PruningError(f"cost=macs: target_speedup={speedup:g} counts time; leave cost out", allocation)
        if other := [name for name, layer in allocation.layers.items() if layer.target is not None or layer.pattern]:
            text = f"layers[{other[0]!r}]: target_speedup={speedup:g} is one target for all; give no target or pattern"
            raise PruningError(f"{text} here (excluded leaves layers as they are)", allocation)
        return dataclasses.replace(allocation, cost="latency")
    if allocation.cost == "latency" and pattern.prunes and not isinstance(pattern, Coupled):
        text = f"cost=latency counts heads and channels, not units of {pattern}: choose structured, heads or ffn"
        raise PruningError(text, allocation)
    if allocation.cost == "latency" and allocation.latency is None:
        raise PruningError("cost=latency needs times: measure a table, and give its file as latency=FILE", allocation)
    if allocation.latency is not None and allocation.cost != "latency":
        text = f"latency={allocation.latency} has no effect with cost={allocation.cost}: set cost=latency"
        raise PruningError(text, allocation)
    return allocation


class Plan:
    """What will be pruned, by which pattern and to which target, decided from names and shapes alone.

    Args:
        parameters: candidates by name; those with more than two dimensions are convolutions, seen as `as_matrix` does.
            Names break ties and are the keys of saved masks. `couple` makes those of a `Coupled` pattern.
        pattern: for all layers that `allocation.layers` does not give another.
        allocation: spreads the target over the layers; if not given: `Global`.
        keeps_zeros: zeros that the parameters have when training begins stay, and count towards the target. Parameters
            that are trained and not pruned are then `Locked`.
        tokens: length of the texts for which `allocation.cost` counts multiply-accumulates.

    Raises:
        PruningError: no parameter fits, a target is out of reach, a name in `allocation.layers` matches nothing, or
            zeros are to stay with `allocation.regrow`.
    """

    @expects(parameters=Mapping, pattern=Pattern, allocation=Allocation)
    def __init__(
        self,
        parameters: Mapping[str, Weight],
        pattern: Pattern,
        allocation: Allocation | None = None,
        keeps_zeros: bool = False,
        tokens: int = 128,
    ) -> None:
        self.pattern, self.allocation = pattern, budgeted(pattern, allocation if allocation is not None else Global())
        """The allocation with the cost that it takes effect with."""
        self.table = self.allocation.table() if self.allocation.cost == "latency" else None
        """Measured times, where the budget is time."""
        self.keeps_zeros = keeps_zeros
        if keeps_zeros and self.allocation.regrow:
            raise PruningError("regrow=True would bring back zeros that are to stay; leave it out", self.allocation)
        self.allocation.check_names({n for name, p in parameters.items() for n in (name, *dict(parts_of(name, p)))})
        self.candidates = {name: parameters[name] for name in sorted(parameters)}
        """All parameters given, sorted by name."""
        self.left: dict[str, str] = {}
        """Parameter name -> why it is left dense."""
        self.frozen: list[str] = []
        """Names of the parameters that `allocation.layers` freezes: neither pruned nor trained."""
        groups: dict[str, Group] = {}
        names: dict[int, list[str]] = {}
        for name, p in self.candidates.items():
            names.setdefault(id(p), []).append(name)
        for name, p in self.candidates.items():
            shared = names[id(p)]
            override = self.allocation.override(*shared, *dict(parts_of(name, p)))
            self.frozen += [name] if override.frozen else []
            own = self._pattern_or_reason(name, p, override, shared[0])
            if isinstance(own, str):
                self.left[name] = own
            else:
                group = Group.of(own, override)
                self._add(groups.setdefault(group.key, group), name, p, tokens)
        self.groups = list(groups.values())
        if isinstance(pattern, Coupled) and pattern.target_speedup is not None:
            self._aim(pattern, pattern.target_speedup)
        self.patterns = {name: group.pattern for group in self.groups for name in group.shapes}
        """The pattern of each parameter that has one."""
        self.criteria = {
            name: own
            for group in self.groups
            if group.criterion is not None
            for own in [criterion_of(group.criterion)]
            for name in group.shapes
        }
        """The criterion of each parameter that has another than the main one."""
        self.parameters = {name: p for name, p in self.candidates.items() if name in self.patterns}
        """The parameters that have a pattern."""
        self._check()

    def _pattern_or_reason(self, name: str, p: Weight, override: LayerOverride, first: str) -> Pattern | str:
        """The pattern of a parameter, or why it is left dense.

        Args:
            first: of its names.
        """
        try:
            own = _pattern(self.pattern, override)
        except PruningError as error:
            raise PruningError(f"allocation.layers, for {name}: {error}") from error
        other = first if first != name else None
        locked = self.keeps_zeros and (override.excluded or _misfit(own, p) or not own.prunes)
        if locked and _reason(p, Locked(), dataclasses.replace(override, excluded=False), other) is None:
            return Locked()
        return _reason(p, own, override, other) or own

    def _add(self, group: Group, name: str, weights: Weight, tokens: int) -> None:
        """Add a layer to a group, with the cost of its units."""
        group.shapes[name] = matrix_shape(weights.shape)
        if not isinstance(weights, CoupledWeights):
            return
        if self.allocation.cost == "macs":
            group.macs[name] = weights.macs(tokens)
        try:
            if self.table is not None and isinstance(group.pattern, Coupled):
                group.saved[name] = self.table.saved(name, weights)
        except PruningError as error:
            raise PruningError(f"latency={self.allocation.latency}: {error}", self.allocation) from error

    def _aim(self, pattern: Coupled, speedup: float) -> None:
        """Give the pattern the target that its speed-up asks for."""
        assert self.table is not None
        quotas = {name: quota for group in self.groups if group.saved
                  for name, quota in group.quotas(self.allocation).items()}  # fmt: skip
        try:
            target = share_for(speedup, self.table.whole, quotas)
        except PruningError as error:
            raise PruningError(str(error), pattern) from error
        self.pattern = copy(pattern)
        self.pattern.target_sparsity = target
        for group in self.groups:
            group.pattern = self.pattern if group.pattern.prunes else group.pattern

    def predict(self, pruned: Mapping[str, int] | None = None) -> TimePrediction | None:
        """The time of the model once the pruned units are cut out; None without a table of times.

        Args:
            pruned: units by name of their weights; None: as many as the target asks for.
        """
        if self.table is None:
            return None
        saved = 0.0
        for group in self.groups:
            if pruned is None and group.pattern.prunes:
                saved += group.pattern.target * sum(times[-1] for times in group.saved.values())
            else:
                saved += sum(times[(pruned or {}).get(name, 0)] for name, times in group.saved.items())
        return TimePrediction(self.table.whole, self.table.whole - saved, self.table.settings)

    def _check(self) -> None:
        if not self.groups or (self.keeps_zeros and self.pattern.prunes and not self.prunes):
            unfit = {name: _misfit(self.pattern, p) or "it is not pruned" for name, p in self.candidates.items()}
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list((self.left or unfit).items())[:3])
            raise PruningError(
                f"no layer can be pruned with pattern {self.pattern}" + (f" ({reasons})" if reasons else "")
            )
        if self.allocation.regrow and any(isinstance(group.pattern, Coupled) for group in self.groups):
            raise PruningError(
                f"regrow=True: a unit of {self.pattern} whose weights are all zero has no gradient and never grows "
                "again; leave regrow out",
                self.allocation,
            )
        for group in self.groups:
            if group.pattern.prunes and group.saved and not any(times[-1] for times in group.saved.values()):
                text = f"latency={self.allocation.latency}: units of {group.pattern} take no measurable time in it"
                raise PruningError(f"{text}; measure again, longer or on a machine that does less", self.allocation)
            fraction = group.pattern.unit_fraction(group.pattern.target)
            self.allocation.check(group.quotas(self.allocation), fraction, group.pattern.max_sparsity)

    def check(self, schedule: Schedule, regularizer: Regularizer, criterion: Criterion) -> None:
        """Raise PruningError if the schedule or the regularizer does not fit a pattern or target, or the criterion the
        allocation."""
        if criterion.updates_survivors and self.allocation.regrow:
            raise PruningError(
                f"regrow=True: {type(criterion).__name__} adapts the other weights to those that are pruned, so that "
                "none can come back; leave regrow out",
                self.allocation,
            )
        for group in self.groups:
            for name in group.shapes if criterion.updates_survivors and group.criterion is None else ():
                weight = self.parameters[name]
                if group.pattern.prunes and isinstance(weight, CoupledWeights) and weight.reader is None:
                    raise PruningError(
                        f"{type(criterion).__name__} refits the matrix that reads a unit's features, and {name} has no "
                        "single one whose columns belong to the units; take another criterion",
                        criterion,
                    )
            if group.pattern.prunes:
                group.check_schedule(schedule)
                regularizer.check(group.pattern)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """All parameters behind the candidates, by name."""
        return dict(part for name, weight in self.candidates.items() for part in parts_of(name, weight))

    @property
    def prunes(self) -> bool:
        """Whether mask updates are needed at all."""
        return any(group.pattern.prunes for group in self.groups)

    @property
    def main_groups(self) -> list[Group]:
        """Groups that have the main pattern, without those with a schedule of their own if others are left."""
        groups = [group for group in self.groups if group.pattern == self.pattern]
        return [group for group in groups if not group.schedule] or groups

    def pruned(self) -> Iterator[tuple[str, Pattern, Weight]]:
        """Name, pattern and weight of all that mask updates prune."""
        for group in self.groups:
            if group.pattern.prunes:
                yield from ((name, group.pattern, self.parameters[name]) for name in group.shapes)

    def ranked_by_main(self) -> dict[str, nn.Parameter]:
        """All parameters that mask updates prune by the main criterion, by name."""
        main = ((name, weight) for name, _, weight in self.pruned() if name not in self.criteria)
        return dict(part for name, weight in main for part in parts_of(name, weight))

    def warn(self) -> None:
        """Log the layers that are left dense."""
        outside = [name for name in self.left if isinstance(self.pattern, Coupled) and name in self.tensors]
        if outside:
            log.info("%d matrices are no part of units of %s and stay dense", len(outside), self.pattern)
        for name in [name for name in self.left if name not in outside]:
            log.warning("%s is left dense: %s", name, self.left[name])


def _pattern(pattern: Pattern, override: LayerOverride) -> Pattern:
    """The pattern of a layer. A pattern given without a target takes that of the main pattern."""
    if override.pattern is not None:
        own = parse(override.pattern, (pattern.target or None) if override.target is None else override.target)
        if override.target is not None and abs(own.target - override.target) > 1e-6:
            raise PruningError(f"target={override.target} is impossible for pattern {own}, which has its own")
        return own
    if override.target is not None:
        return dataclasses.replace(pattern, target_sparsity=override.target)
    return pattern


def _reason(parameter: Weight, pattern: Pattern, override: LayerOverride, shared: str | None) -> str | None:
    """Why a parameter is left dense, or None if it is pruned."""
    if override.excluded:
        return "allocation.layers excludes it"
    if override.frozen:
        return "allocation.layers freezes it"
    if shared is not None:
        return f"it is the same tensor as {shared}, which decides"
    if not parameter.requires_grad:
        return "it is frozen"
    if not parameter.numel():
        return "it is empty"
    return _misfit(pattern, parameter)

"""Mask updates by OBS: which units go, in rounds over all layers, and what the others become."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pruning.allocation import Allocation
from pruning.blocks import Block
from pruning.coupled import parts_of
from pruning.errors import PruningError
from pruning.groups import Group
from pruning.masks import Masks
from pruning.matrices import as_matrix, from_matrix, matrix_shape
from pruning.nofm import NofM
from pruning.plan import Plan
from pruning.second_order.calibration import Calibration, Statistics, collect, modules_of
from pruning.second_order.criteria import OBS
from pruning.second_order.sequence import Before, Moved, collect_again
from pruning.second_order.solver import LayerSolver
from pruning.selection import lowest

log = logging.getLogger(__name__)

Select = Callable[[float, dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
"""(Part of an update that is due, costs, bool [units] that are pruned so far) -> bool [units] to prune, by layer."""


@contextmanager
def _timed(what: str) -> Iterator[None]:
    began = time.process_time()
    yield
    log.info("%s took %.1f s of CPU time", what, time.process_time() - began)


class SurvivorUpdate:
    """One mask update by OBS: `choose` the masks of each group, `settle` them, then `write` the survivors.

    Args:
        calibration: the model and its data; the model is run once, and again for each input if OBS is sequential.
        masks: those so far. What they prune stays pruned; zeros that are held singly go with their whole unit.
    """

    def __init__(self, calibration: Calibration, plan: Plan, criterion: OBS, masks: Masks) -> None:
        self.calibration, self.plan, self.criterion, self.masks = calibration, plan, criterion, masks
        pruned = plan.ranked_by_main()
        with _timed("calibration"):
            statistics = collect(calibration, pruned, criterion.seed)
        self.owners = modules_of(calibration.model, pruned)
        self.biases = {name: _own_bias(self.owners[name]) for name in pruned}
        self.calls = statistics.calls
        self.solvers = {name: self._solver(name, statistics) for name in pruned if _matters(name, statistics)}
        """Layers by parameter name, where something is known of the layer."""
        self.units: dict[str, Tensor] = {}
        """bool [units] by name: the units that were chosen, True = pruned."""

    def _solver(self, name: str, statistics: Statistics) -> LayerSolver:
        pattern, weight = self.plan.patterns[name], as_matrix(self.plan.parameters[name].detach())
        bias = self.biases[name]
        block = pattern.block(weight.shape) if isinstance(pattern, Block) else (1, 1)
        return LayerSolver(
            weight if bias is None else torch.cat([weight, bias.detach()[:, None]], 1),
            statistics.hessians[name],
            statistics.fisher[name],
            self.criterion.damping,
            block,
            self._alive(name, weight.shape)[:: block[0]],
        )

    def _alive(self, name: str, shape: torch.Size) -> Tensor:
        """bool [out, in]: what the masks so far leave."""
        pattern, mask = self.plan.patterns[name], self.masks.get(name)
        if mask is None:
            return torch.ones(shape, dtype=torch.bool, device=self.plan.parameters[name].device)
        broken = self.masks.broken(name)
        return pattern.expand(mask if broken is None else mask & ~broken.view(mask.shape), shape)

    @_timed("choosing masks and solving for survivors")
    def choose(self, group: Group, allocation: Allocation, before: float, fraction: float) -> dict[str, Tensor]:
        """The masks of the group's layers that are known, with `fraction` of the units pruned, by way of the rounds.

        Args:
            before: the fraction that is pruned already.
        """
        layers = {name: self.solvers[name] for name in group.shapes if name in self.solvers}
        if not layers:
            return {}
        if isinstance(group.pattern, NofM):
            return self._choose_groups(group, group.pattern, layers, allocation, fraction)
        if self.plan.keeps_zeros:
            before = max(before, self._part_gone(group, layers))

        def select(part: float, costs: dict[str, Tensor], gone: dict[str, Tensor]) -> dict[str, Tensor]:
            due = before + (fraction - before) * part
            log.info("pruning %.4f of the units", due)
            return self._select(group, allocation, costs, gone, due, fraction)

        return self._rounds(layers, select, solved=not self.criterion.sequential)

    def _rounds(self, layers: Mapping[str, LayerSolver], select: Select, solved: bool = True) -> dict[str, Tensor]:
        """The masks of blocks that are pruned in rounds.

        Args:
            solved: solve for the survivors in the end too.
        """
        costs = {name: layer.solve(costs=True) for name, layer in layers.items()}
        masks: dict[str, Tensor] = {}
        for i, part in enumerate(self.criterion.rounds):
            chosen = select(part, costs, {name: _units_gone(layer) for name, layer in layers.items()})
            last = i + 1 == len(self.criterion.rounds)
            for name, layer in layers.items():
                masks[name] = chosen[name].logical_not().view(costs[name].shape)
                alive = masks[name].repeat_interleave(layer.cols, 1)
                if last or not torch.equal(alive, layer.alive):
                    layer.alive = alive
                    if solved or not last:
                        costs[name] = layer.solve(costs=not last)
        return masks

    def _part_gone(self, group: Group, layers: Mapping[str, LayerSolver]) -> float:
        """The fraction of the weights of some layers that is pruned, or goes with the zeros among it."""
        total = sum(group.shapes[name].numel() for name in layers)
        return sum(layer.rows * int((~layer.alive).sum()) for layer in layers.values()) / total

    def _select(
        self,
        group: Group,
        allocation: Allocation,
        costs: Mapping[str, Tensor],
        gone: Mapping[str, Tensor],
        due: float,
        fraction: float,
    ) -> dict[str, Tensor]:
        """Bool [units] by layer: what to prune so that the fraction `due` is pruned on the way to `fraction`."""
        counts = {name: int(units.count_nonzero()) for name, units in gone.items()}
        due, quotas = group.budget(allocation, fraction, counts, due)
        if self.plan.keeps_zeros:  # a layer may have more zeros than its cap
            for quota in quotas.values():
                quota.cap = max(quota.most, quota.gone)
        ranked = {name: cost.flatten().masked_fill(gone[name], -torch.inf) for name, cost in costs.items()}
        return allocation.select(ranked, due, quotas)

    def _choose_groups(
        self, group: Group, pattern: NofM, layers: dict[str, LayerSolver], allocation: Allocation, fraction: float
    ) -> dict[str, Tensor]:
        costs = {name: layer.group_costs(pattern.n, pattern.m) for name, layer in layers.items()}
        gone = {name: pattern.pruned(layer.alive) for name, layer in layers.items()}
        chosen = self._select(group, allocation, costs, gone, fraction, fraction)
        self.units |= chosen
        for name, layer in layers.items():
            if not self.criterion.sequential:
                _prune_groups(layer, pattern, chosen[name])
        return {name: layer.alive for name, layer in layers.items()}

    @torch.no_grad()
    def settle(self, chosen: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The masks of this update, given those of `choose` and of other criteria.

        If OBS is sequential, layers are pruned one after the other, in the order in which they run, on inputs that are
        collected again. Each fits the outputs of the model before, and loses as many units as were chosen: blocks are
        chosen anew in it, N:M anew in each group.

        Raises:
            PruningError: inputs are not finite; no weight has changed then.
        """
        masks = {name: mask for masks in chosen for name, mask in masks.items()}
        if not self.criterion.sequential or not masks:
            return chosen
        tensors = [p for name in masks for _, p in parts_of(name, self.plan.parameters[name])]
        before = Before([*tensors, *(bias for bias in self.biases.values() if bias is not None)])
        try:
            with _timed("pruning in sequence"):
                self._prune_others({name: mask for name, mask in masks.items() if name not in self.solvers})
                for number, stage in enumerate(stages := self._stages(masks), 1):
                    moved = self._collect_again(stage[0], before)
                    log.info(
                        "input %d of %d, of %s: moved by %.1f %%", number, len(stages), stage[0], 100 * moved.distance
                    )
                    for name in stage:
                        masks[name] = self._prune_again(name, moved, masks[name])
        except BaseException:
            before.take_back()
            raise
        return [{name: masks[name] for name in group} for group in chosen]

    def _stages(self, masks: Mapping[str, Tensor]) -> list[list[str]]:
        """Layers that read the same input, in the order in which they run."""
        stages: dict[int, list[str]] = {}
        for name in self.calls:
            if name in masks and name in self.solvers:
                stages.setdefault(self.solvers[name].hessian.data_ptr(), []).append(name)
        return list(stages.values())

    def _collect_again(self, name: str, before: Before) -> Moved:
        try:
            return collect_again(self.calibration, self.owners[name], self.calls[name], before, self.criterion.seed)
        except PruningError as error:
            raise PruningError(f"calibration of {name}: {error}") from error

    def _prune_others(self, masks: Mapping[str, Tensor]) -> None:
        """Set the weights to zero that other criteria prune."""
        others = Masks(self.plan.parameters, self.plan.patterns, self.plan.keeps_zeros)
        for name, mask in masks.items():
            others.set(name, mask)
        others.enforce(None)

    def _prune_again(self, name: str, moved: Moved, mask: Tensor) -> Tensor:
        """Prune one layer on inputs that moved, and write its weights."""
        old, pattern = self.solvers.pop(name), self.plan.patterns[name]
        alive = self._alive(name, matrix_shape(self.plan.parameters[name].shape))[:: old.rows]
        layer = LayerSolver(
            moved.target(old.original, old.damping), moved.hessian, old.fisher, old.damping, (old.rows, old.cols), alive
        )
        if not bool(alive.all()):  # nothing is chosen by what the pruned weights would do
            layer.solve()
            layer.original = layer.weights
        if isinstance(pattern, NofM):
            _prune_groups(layer, pattern, self.units[name])
            mask = layer.alive
        else:
            first, count = int(_units_gone(layer).count_nonzero()), int((~mask).count_nonzero())

            def select(part: float, costs: dict[str, Tensor], gone: dict[str, Tensor]) -> dict[str, Tensor]:
                cost = costs[name].flatten().masked_fill(gone[name], -torch.inf)
                return {name: lowest(cost, first + round((count - first) * part))}

            mask = self._rounds({name: layer}, select)[name]
        self._write(name, layer)
        return mask

    @torch.no_grad()
    def write(self) -> None:
        """Set the survivors, and the biases that were refitted with them."""
        for name, layer in self.solvers.items():
            self._write(name, layer)

    def _write(self, name: str, layer: LayerSolver) -> None:
        p, bias = self.plan.parameters[name], self.biases[name]
        assert isinstance(p, nn.Parameter)  # `Plan.check`
        p.copy_(from_matrix(layer.weights[:, : layer.inputs].contiguous(), p.shape))
        if bias is not None:
            bias.copy_(layer.weights[:, -1])


def _units_gone(layer: LayerSolver) -> Tensor:
    """bool [units]: blocks that are pruned already."""
    return ~layer.alive[:, :: layer.cols].flatten()  # of some layers a view: not in place


def _prune_groups(layer: LayerSolver, pattern: NofM, chosen: Tensor) -> None:
    """Prune the chosen N:M groups of a layer, and solve for the survivors.

    Args:
        chosen: bool [out * in / m].
    """
    layer.alive = layer.alive & ~layer.columns_in_order(pattern.n, pattern.m, chosen.view(len(layer.alive), -1))
    layer.solve()


def _matters(name: str, statistics: Statistics) -> bool:
    """Whether the layer was used, and its outputs count for anything."""
    return name in statistics.hessians and bool(statistics.fisher[name].any())


def _own_bias(modules: list[nn.Module]) -> nn.Parameter | None:
    """The bias that may be refitted: that of a weight's only module, if it is trained."""
    bias = modules[0].bias if len(modules) == 1 else None
    return bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None

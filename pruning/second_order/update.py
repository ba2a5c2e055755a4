"""Mask updates by OBS: which units go, in rounds over all layers, and what the others become."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.allocation import Allocation
from pruning.blocks import Block
from pruning.coupled import Coupled, CoupledWeights, Part
from pruning.groups import Group
from pruning.masks import Masks
from pruning.matrices import as_matrix, from_matrix, matrix_shape
from pruning.nofm import NofM
from pruning.plan import Plan
from pruning.second_order.calibration import Calibration, Statistics, collect, modules_of
from pruning.second_order.criteria import OBS, refitted
from pruning.second_order.solver import LayerSolver

log = logging.getLogger(__name__)

Select = Callable[[float, dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
"""(Part of an update that is due, costs, bool [units] that are pruned so far) -> bool [units] to prune, by layer."""


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Log the CPU time of a block or a function."""
    began = time.process_time()
    yield
    log.info("%s took %.1f s of CPU time", what, time.process_time() - began)


class SurvivorUpdate:
    """One mask update by OBS: `choose` the masks of each group, `settle` them, then `write` the survivors.

    Args:
        calibration: the model and its data; the model is run once.
        masks: those so far. What they prune stays pruned; zeros that are held singly go with their whole unit.
    """

    solves: ClassVar[bool] = True
    """Whether `choose` makes the final choice, and solves for the survivors."""

    def __init__(self, calibration: Calibration, plan: Plan, criterion: OBS, masks: Masks) -> None:
        self.calibration, self.plan, self.criterion, self.masks = calibration, plan, criterion, masks
        self.matrices = refitted(plan)
        with timed("calibration"):
            statistics = collect(calibration, dict(self.matrices.values()), criterion.seed)
        self.owners = modules_of(calibration.model, dict(self.matrices.values()))
        self.calls = statistics.calls
        self.units: dict[str, Tensor] = {}
        """bool [units] by name: the units that were chosen, True = pruned."""
        self.biases = {name: _own_bias(self.owners[matrix]) for name, (matrix, _) in self.matrices.items()}
        used = [name for name, (matrix, _) in self.matrices.items() if _matters(matrix, statistics)]
        self.solvers = {name: self._solver(name, statistics) for name in used}
        """Layers by name of what the plan prunes, where something is known of the layer."""

    def _solver(self, name: str, statistics: Statistics) -> LayerSolver:
        matrix, parameter = self.matrices[name]
        pattern, weight, part = self.plan.patterns[name], as_matrix(parameter.detach()), self._reader(name)
        pattern, bias = pattern if part is None else part.block, self.biases[name]
        block = pattern.block(weight.shape) if isinstance(pattern, Block) else (1, 1)
        return LayerSolver(
            weight if bias is None else torch.cat([weight, bias.detach()[:, None]], 1),
            statistics.hessians[matrix],
            statistics.fisher[matrix],
            self.criterion.damping,
            block,
            self._alive(name)[:: block[0]],
        )

    def _alive(self, name: str) -> Tensor:
        """bool [out, in]: what the masks so far leave of the matrix that is solved for."""
        parameter, part, mask = self.matrices[name][1], self._reader(name), self.masks.get(name)
        shape = matrix_shape(parameter.shape)
        if mask is None:
            return torch.ones(shape, dtype=torch.bool, device=parameter.device)
        broken = self.masks.broken(name)
        mask = mask if broken is None else mask & ~broken.view(mask.shape)
        return self.plan.patterns[name].expand(mask, shape) if part is None else part.block.expand(mask[None], shape)

    def _reader(self, name: str) -> Part | None:
        """The columns of coupled units in the matrix that is solved for; None for a weight of its own."""
        weight = self.plan.parameters[name]
        return weight.reader if isinstance(weight, CoupledWeights) else None

    @timed("choosing masks and solving for survivors")
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
            before = max(before, self._part_gone(group, allocation, layers))

        def select(part: float, costs: dict[str, Tensor], gone: dict[str, Tensor]) -> dict[str, Tensor]:
            due = before + (fraction - before) * part
            log.info("pruning %.4f of the units", due)
            return self._select(group, allocation, costs, gone, due, fraction)

        return self._rounds(layers, select, self.solves)

    def _rounds(self, layers: Mapping[str, LayerSolver], select: Select, solved: bool) -> dict[str, Tensor]:
        """The masks of units that are pruned in rounds.

        Args:
            solved: solve for the survivors in the end too.
        """
        costs = {name: layer.solve(costs=True) for name, layer in layers.items()}
        masks: dict[str, Tensor] = {}
        for i, part in enumerate(self.criterion.rounds):
            chosen = select(part, costs, {name: units_gone(layer) for name, layer in layers.items()})
            last = i + 1 == len(self.criterion.rounds)
            for name, layer in layers.items():
                units = chosen[name].logical_not()
                masks[name] = units.view(self.masks.shape(name))
                alive = units.view(costs[name].shape).repeat_interleave(layer.cols, 1)
                if (last and not solved) or (not last and torch.equal(alive, layer.alive)):
                    continue
                layer.alive = alive
                if last and name in self.masks.single and self._reader(name) is not None:
                    self._keep_single_zeros(name, layer)
                costs[name] = layer.solve(costs=not last)
        return masks

    def _keep_single_zeros(self, name: str, layer: LayerSolver) -> None:
        """Solve for the survivors of each row alone: zeros in units that stay differ from row to row. Costs of units
        do not look at them."""
        weight, part = self.plan.parameters[name], self._reader(name)
        assert isinstance(weight, CoupledWeights)
        assert part is not None
        alive = torch.empty(part.parameter.shape, dtype=torch.bool, device=layer.alive.device)
        view = part.view(alive)
        view.copy_(self.masks.single[name][:, weight.columns[part.name]].view(view.shape))
        layer.cols, layer.rows = 1, next(rows for rows in (8, 4, 2, 1) if _alike(alive, rows))
        layer.alive = (alive & layer.alive)[:: layer.rows]

    def _part_gone(self, group: Group, allocation: Allocation, layers: Mapping[str, LayerSolver]) -> float:
        """The fraction of the weights of some layers that is pruned, or goes with the zeros among it."""
        quotas = {name: quota for name, quota in group.quotas(allocation).items() if name in layers}
        gone = sum(quota.saves(int(units_gone(layers[name]).sum())) for name, quota in quotas.items())
        return gone / sum(quota.saves(quota.units) for quota in quotas.values())

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
        if isinstance(group.pattern, Coupled):
            weighed = [name for name in costs if quotas[name].saved is None]  # where time counts, it is in the quota
            costs = {**costs, **{name: costs[name] / quotas[name].zeros for name in weighed}}
        ranked = {name: cost.flatten().masked_fill(gone[name], -torch.inf) for name, cost in costs.items()}
        return allocation.select(ranked, due, quotas)

    def _choose_groups(
        self, group: Group, pattern: NofM, layers: dict[str, LayerSolver], allocation: Allocation, fraction: float
    ) -> dict[str, Tensor]:
        costs = {name: layer.group_costs(pattern.n, pattern.m) for name, layer in layers.items()}
        gone = {name: pattern.pruned(layer.alive) for name, layer in layers.items()}
        chosen = self._select(group, allocation, costs, gone, fraction, fraction)
        self.units |= chosen
        for name, layer in layers.items() if self.solves else ():
            prune_groups(layer, pattern, chosen[name])
        return {name: layer.alive for name, layer in layers.items()}

    def settle(self, chosen: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """The masks of this update, given those of `choose` and of other criteria."""
        return chosen

    @torch.no_grad()
    def write(self) -> None:
        """Set the survivors, and the biases that were refitted with them."""
        for name, layer in self.solvers.items():
            self._write(name, layer)

    def _write(self, name: str, layer: LayerSolver) -> None:
        (_, p), bias = self.matrices[name], self.biases[name]
        p.copy_(from_matrix(layer.weights[:, : layer.inputs].contiguous(), p.shape))
        if bias is not None:
            bias.copy_(layer.weights[:, -1])


def units_gone(layer: LayerSolver) -> Tensor:
    """bool [units]: blocks that are pruned already."""
    return ~layer.alive[:, :: layer.cols].flatten()  # of some layers a view: not in place


def prune_groups(layer: LayerSolver, pattern: NofM, chosen: Tensor) -> None:
    """Prune the chosen N:M groups of a layer, and solve for the survivors.

    Args:
        chosen: bool [out * in / m].
    """
    layer.alive = layer.alive & ~layer.columns_in_order(pattern.n, pattern.m, chosen.view(len(layer.alive), -1))
    layer.solve()


def _alike(alive: Tensor, rows: int) -> bool:
    """Whether consecutive rows, so many at a time, are the same."""
    return len(alive) % rows == 0 and torch.equal(alive, alive[::rows].repeat_interleave(rows, 0))


def _matters(name: str, statistics: Statistics) -> bool:
    """Whether the layer was used, and its outputs count for anything."""
    return name in statistics.hessians and bool(statistics.fisher[name].any())


def _own_bias(modules: list[nn.Module]) -> nn.Parameter | None:
    """The bias that may be refitted: that of a weight's only module, if it is trained."""
    bias = modules[0].bias if len(modules) == 1 else None
    return bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None

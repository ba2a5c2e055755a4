"""Mask updates by OBS, one layer after the other."""

import logging
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from pruning.coupled import parts_of
from pruning.errors import PruningError
from pruning.masks import Masks
from pruning.nofm import NofM
from pruning.plan import Plan
from pruning.second_order.calibration import Calibration
from pruning.second_order.chain import Chain
from pruning.second_order.criteria import OBS
from pruning.second_order.sequence import Before, Moved, collect_again
from pruning.second_order.solver import LayerSolver
from pruning.second_order.update import SurvivorUpdate, prune_groups, timed, units_gone
from pruning.selection import lowest

log = logging.getLogger(__name__)


class UpdateInSequence(SurvivorUpdate):
    """A mask update in which layers are pruned in the order in which they run, on inputs that are collected again.

    `choose` decides how many units each layer loses, for all together, by the inputs of the model before. Each layer
    then fits the outputs of the model before, and which of its blocks go, or which weights of its N:M groups, is chosen
    anew.
    """

    solves: ClassVar[bool] = False

    @torch.no_grad()
    def settle(self, chosen: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Prune one layer after the other, and write its weights.

        Raises:
            PruningError: inputs are not finite; no weight has changed then.
        """
        masks = {name: mask for masks in chosen for name, mask in masks.items()}
        if not masks:
            return chosen
        tensors = [p for name in masks for _, p in parts_of(name, self.plan.parameters[name])]
        before = Before([*tensors, *(bias for bias in self.biases.values() if bias is not None)])
        try:
            with timed("pruning in sequence"):
                self._prune_others({name: mask for name, mask in masks.items() if name not in self.solvers})
                chain = Chain(self.calibration.model)
                for number, stage in enumerate(stages := self._stages(masks), 1):
                    moved = self._collect_again(stage[0], before, chain)
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
        known = {self.matrices[name][0]: name for name in self.solvers if name in masks}
        for name in [known[matrix] for matrix in self.calls if matrix in known]:
            stages.setdefault(self.solvers[name].hessian.data_ptr(), []).append(name)
        return list(stages.values())

    def _collect_again(self, name: str, before: Before, chain: Chain) -> Moved:
        matrix, seed = self.matrices[name][0], self.criterion.seed
        try:
            return collect_again(self.calibration, self.owners[matrix], self.calls[matrix], before, chain, seed)
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
        alive = self._alive(name)[:: old.rows]
        layer = LayerSolver(
            moved.target(old.original, old.damping), moved.hessian, old.fisher, old.damping, (old.rows, old.cols), alive
        )
        if not bool(alive.all()):  # nothing is chosen by what the pruned weights would do
            layer.solve()
            layer.original = layer.weights
        if isinstance(pattern, NofM):
            prune_groups(layer, pattern, self.units[name])
            mask = layer.alive
        else:
            first, count = int(units_gone(layer).count_nonzero()), int((~mask).count_nonzero())

            def select(part: float, costs: dict[str, Tensor], gone: dict[str, Tensor]) -> dict[str, Tensor]:
                cost = costs[name].flatten().masked_fill(gone[name], -torch.inf)
                return {name: lowest(cost, first + round((count - first) * part))}

            mask = self._rounds({name: layer}, select, solved=True)[name]
        self._write(name, layer)
        return mask


def survivor_update(calibration: Calibration, plan: Plan, criterion: OBS, masks: Masks) -> SurvivorUpdate:
    """The kind of mask update that the criterion asks for."""
    return (UpdateInSequence if criterion.sequential else SurvivorUpdate)(calibration, plan, criterion, masks)

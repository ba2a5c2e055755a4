"""The pruner: decides at each optimizer step what to observe, when to update masks and how much to prune."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor
from torch.optim import Optimizer

from pruning.criteria import Criterion, SnipMomentum
from pruning.errors import PruningError, expects
from pruning.groups import Group
from pruning.hooks import StepHooks, check_optimizer
from pruning.masks import KEEPS_ZEROS, Masks
from pruning.plan import Plan
from pruning.regularizers import Regularizer
from pruning.report import LayerReport, MaskUpdate, check_targets, describe
from pruning.schedules import Schedule, TrainingLength
from pruning.scores import Scores, add_penalty
from pruning.second_order import OBS, Calibrated, Calibration
from pruning.second_order.in_sequence import survivor_update
from pruning.second_order.update import SurvivorUpdate
from pruning.state import check, identity, pack, unpack
from pruning.timetable import Timetable
from pruning.zeros import budget, hold

log = logging.getLogger(__name__)


class Pruner:
    """Prunes the parameters of a plan while an optimizer trains them, in any training loop.

    Before each optimizer step the criterion observes weights and gradients; after it the masks are updated if an
    update is due, and pruned weights and their optimizer moments are exactly +0.0. Pruned units never come back, unless
    `allocation.regrow`. A step that a GradScaler skips counts for nothing; one with gradients that are not finite
    changes neither scores nor masks, and an update due then waits for the next.

    Args:
        plan: what is pruned. Parameters that it freezes are no longer trained.
        schedule: when masks are updated, and how sparse they are then.
        length: of the training, which the schedule divides.
        criterion: ranks the units; if not given: `SnipMomentum`.
        regularizer: pulls weights towards the pattern; if not given: none.
        calibration: model and data for a criterion that reads them; not needed before the first update.

    Raises:
        PruningError: the schedule does not fit into the training, or does not go with a target.
    """

    @expects(plan=Plan, schedule=Schedule, length=TrainingLength, criterion=Criterion, regularizer=Regularizer)
    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        length: TrainingLength,
        criterion: Criterion | None = None,
        regularizer: Regularizer | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.plan, self.schedule, self.length = plan, schedule, length
        self.pattern, self.allocation, self.parameters = plan.pattern, plan.allocation, plan.parameters
        self.criterion = criterion if criterion is not None else SnipMomentum()
        self.regularizer = regularizer if regularizer is not None else Regularizer()
        self.calibration = calibration
        for name in plan.frozen:
            plan.candidates[name].requires_grad_(False)
        self.timetable = Timetable(plan, schedule, length)
        self.updates = self.timetable.updates
        """Optimizer steps taken before an update -> progress of the main schedule."""
        plan.check(schedule, self.regularizer, self.criterion)
        self.masks = Masks(self.parameters, plan.patterns, plan.keeps_zeros)
        self.scores = Scores(self.criterion, plan)
        self.steps_taken = 0
        self.history: list[MaskUpdate] = []
        """What each mask update changed."""
        self.skipped_observations = 0
        """Number of steps whose gradients were not finite."""
        self.update_seconds = 0.0
        """Wall-clock seconds that mask updates took since this object was made."""
        self._last_update = -1  # the step that the last update made was for
        self._fractions = {group.key: 0.0 for group in plan.groups}  # of the units, pruned
        self._finite = True  # the gradients of the optimizer step in progress
        self._warned: set[str] = set()
        self._optimizer: Optimizer | None = None
        self._hooks: StepHooks | None = None

    @property
    def sparsity(self) -> float:
        """Sparsity after the last update, over the layers that have the main pattern."""
        if self.plan.keeps_zeros:
            mine = [n for n, p in self.plan.patterns.items() if p == self.pattern and self.masks.get(n) is not None]
            return sum(map(self.masks.zeros, mine)) / max(1, sum(self.parameters[name].numel() for name in mine))
        mine = [self._fractions[group.key] for group in self.plan.main_groups]
        return max(mine, default=0.0) * self.pattern.max_sparsity

    # --- in the training loop -------------------------------------------------------------------------------

    @expects(optimizer=Optimizer)
    def attach(self, optimizer: Optimizer) -> None:
        """Let every step of `optimizer` observe, prune and enforce. Hook the torch optimizer, not a wrapper of it.

        Raises:
            PruningError: the optimizer does not train all parameters of the plan, lacks what the criterion reads, or
                has another pruner of one of them; or weights with the pattern `Locked` have no zeros.
        """
        if self._optimizer is not None:
            raise PruningError("the pruner is attached to an optimizer already")
        for criterion in (self.criterion, *self.plan.criteria.values()):
            check_optimizer(optimizer, self.parameters, criterion)
        self._prepare()
        self._hooks = StepHooks(optimizer, self.parameters, self._before_step, self._after_step, self.masks.enforce)
        self._optimizer = optimizer
        try:
            if not self.steps_taken:
                self._update_if_due()  # an update at step 0
            self.masks.enforce(optimizer)  # after a resume
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Release the optimizer. From then on nothing holds pruned weights at zero."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = self._optimizer = None

    def _prepare(self) -> None:
        """What comes before the first update."""
        if self.criterion.needs_calibration and self.calibration is None and self.plan.prunes:
            raise PruningError(f"{type(self.criterion).__name__} reads calibration data: give the pruner a calibration")
        hold(self.plan, self.masks)
        self.plan.warn()

    @torch.no_grad()
    def _before_step(self, gradient_scale: float) -> None:
        self._finite = True
        if self._last_update < max(self.updates, default=-1):
            self.observe(1.0 / gradient_scale)
            if self._finite and type(self.regularizer) is not Regularizer:
                add_penalty(self.plan, self.regularizer, gradient_scale)
        self.masks.clear_gradients()

    def _after_step(self) -> None:
        self.steps_taken += 1
        if not self._update_if_due() and type(self._optimizer) not in KEEPS_ZEROS:
            self.masks.enforce(self._optimizer)

    @torch.no_grad()
    def observe(self, gradient_scale: float = 1.0) -> None:
        """Let the criteria observe this step's gradients times `gradient_scale`. Infinite ones change no scores."""
        if not (self.scores.needs_gradient or self._due(self.steps_taken + 1) is not None):
            return
        self._finite = self.scores.observe(gradient_scale)
        if not self._finite:
            self.skipped_observations += 1
            log.warning("step %d: gradients are not finite; this step does not count for the scores", self.steps_taken)

    # --- mask updates ---------------------------------------------------------------------------------------

    def _due(self, steps_taken: int) -> int | None:
        """The latest update not made yet that is due after so many steps."""
        return max((step for step in self.updates if self._last_update < step <= steps_taken), default=None)

    def _update_if_due(self) -> bool:
        """Make the update that is due, if any. Returns whether it was made."""
        if (due := self._due(self.steps_taken)) is None or not self._finite:
            return False
        begin = time.perf_counter()
        made = self.prune(self.timetable.due(self._last_update, due))
        self.update_seconds += time.perf_counter() - begin
        if made:
            self._last_update = due
        return made

    def update_now(self) -> None:
        """Make the update that is due without an optimizer: pruning without training."""
        self._prepare()
        self._update_if_due()

    @torch.no_grad()
    def prune(self, progress: float | Mapping[str, float]) -> bool:
        """Choose the units to prune at this progress of the schedule (of all groups, or by key of those that are due),
        those pruned already first, and zero them. The optimizer's step calls it when an update is due.

        Returns:
            Whether there was anything to rank them by. If not, nothing is changed.
        """
        groups = {group.key: group for group in self.plan.groups if group.pattern.prunes}
        progress = progress if isinstance(progress, Mapping) else dict.fromkeys(groups, progress)
        due = [(groups[k], fraction) for k, at in progress.items() if (fraction := self._fraction(groups[k], at)) > 0]
        survivors = self._calibrate() if any(group.criterion is None for group, _ in due) else None
        chosen = [self._choose(g, fraction, None if g.criterion else survivors) for g, fraction in due]
        chosen = chosen if survivors is None else survivors.settle(chosen)
        self._fractions |= {group.key: fraction for (group, fraction), masks in zip(due, chosen, strict=True) if masks}
        update = MaskUpdate(self.steps_taken, 0.0, {}, {})
        for name, mask in [item for masks in chosen for item in masks.items()]:
            update.count(name, self.parameters[name], self.masks.get(name), mask, self.allocation.regrow)
            before = self.masks.zeros_of_parts(name) if self.plan.keeps_zeros else {}
            self.masks.set(name, mask)
            for part, count in self.masks.zeros_of_parts(name).items() if self.plan.keeps_zeros else ():
                if part in update.removed:  # a unit may have had zeros
                    update.removed[part] = count - before[part]
        update.sparsity = self.sparsity
        if survivors is not None:
            survivors.write()
        self.masks.enforce(self._optimizer)
        if any(chosen):
            self.history.append(update)
        return not chosen or any(chosen)

    def _calibrate(self) -> SurvivorUpdate | None:
        """Let a criterion that reads calibration data do so."""
        if self.calibration is None or not self.plan.ranked_by_main():
            return None
        if isinstance(self.criterion, OBS):
            return survivor_update(self.calibration, self.plan, self.criterion, self.masks)
        if isinstance(self.criterion, Calibrated):
            self.scores.calibrate(self.criterion.scores(self.calibration, self.plan))
        return None

    def _fraction(self, group: Group, progress: float) -> float:
        """The fraction of a group's units to prune."""
        fraction = group.pattern.unit_fraction(self.timetable.sparsity(group, progress))
        return fraction if self.allocation.regrow else max(fraction, self._fractions[group.key])

    def _choose(self, group: Group, fraction: float, survivors: SurvivorUpdate | None) -> dict[str, Tensor]:
        """The masks of one group. Layers without scores keep theirs, and their units are not in the budget."""
        pattern, allocation, losers = group.pattern, group.own_allocation(self.allocation), {}
        what = self.scores.criterion_for(next(iter(group.shapes))).evidence
        if survivors is not None:
            known = survivors.choose(group, allocation, self._fractions[group.key], fraction)
        else:
            known, losers = self.scores.costs(group, self.masks, self._optimizer, allocation.regrow)
        if not known:
            self._warn_once(f"no layer for pattern {pattern} has a {what} other than zero: its masks wait")
            return {}
        if len(known) < len(group.shapes):
            silent = sorted(group.shapes.keys() - known.keys())
            why = self.scores.no_evidence(silent[0])
            self._warn_once(f"{silent[0]} (and {len(silent) - 1} more) cannot be pruned: {why}")
        if survivors is not None:
            return known
        chosen = allocation.select(known, *budget(self.plan, self.masks, group, fraction, known))
        return {name: pattern.mask(losers[name], pruned) for name, pruned in chosen.items()}

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning("step %d: %s", self.steps_taken, message)

    # --- afterwards -----------------------------------------------------------------------------------------

    def check_reached(self) -> None:
        """Raise PruningError if the training ended before the last update, or short of a target."""
        if not self.updates:
            return
        if self._last_update < (last := max(self.updates)):
            why = f"without a {self.criterion.evidence} to rank weights by for the last mask update"
            if self.steps_taken < last:
                why = f"before the last mask update at step {last}"
            raise PruningError(
                f"the training ended after {self.steps_taken} optimizer steps, {why}: sparsity is {self.sparsity:g}, "
                f"not {self.pattern.target:g}"
            )
        check_targets(self.plan, self.report(), self.masks)

    def report(self) -> list[LayerReport]:
        """One entry per weight, also for those left dense, in the order of their names."""
        due = [g for g in self.plan.groups if g.pattern.prunes and self.timetable.sparsity_at(g, self._last_update) > 0]
        unranked = [name for group in due for name in group.shapes if self.masks.get(name) is None]
        return describe(self.plan, self.masks, {name: self.scores.no_evidence(name) for name in unranked})

    def _identity(self) -> dict[str, str]:
        return identity(self.plan, self.criterion, self.schedule, self.length, self.regularizer)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that a rebuilt pruner needs to continue bit for bit: tensors for safetensors, and plain text."""
        tensors = pack(self.scores, self.masks)
        return tensors, self._identity() | {
            "steps_taken": str(self.steps_taken),
            "last_update": str(self._last_update),
            "fractions": json.dumps(self._fractions),
            "history": json.dumps([asdict(update) for update in self.history]),
            "tensors": json.dumps(sorted(tensors)),
        }

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, str]) -> None:
        """Take over a state made by `state_dict` of a pruner built with the same arguments.

        Raises:
            PruningError: the other was built with other arguments, or the state is incomplete.
        """
        check(tensors, values, self._identity())
        unpack(tensors, self.scores, self.masks, self.plan)
        self.steps_taken, self._last_update = int(values["steps_taken"]), int(values["last_update"])
        self._fractions = json.loads(values["fractions"])
        self.history = [MaskUpdate(**update) for update in json.loads(values["history"])]

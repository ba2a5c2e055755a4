"""The pruner: the only owner of masks. It lives in the optimizer's step, so that it works in any training loop."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from pruning.allocation import Allocation, Global
from pruning.criteria import Criterion, Layer, SnipMomentum
from pruning.errors import PruningError
from pruning.patterns import Pattern
from pruning.plan import Group, Plan, as_matrix, matrix_shape
from pruning.regularizers import Regularizer
from pruning.schedules import Schedule, TrainingLength

log = logging.getLogger(__name__)

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# A weight of +0.0 with a gradient and moments of 0 is still +0.0, and they 0, after a step of these. Any other
# optimizer may mix neighbours or add noise: its weights and moments are set to zero again after each step.
_KEEPS_ZEROS = (SGD, Adam, AdamW, NAdam, RAdam, RMSprop)
_NO_EVIDENCE = "its gradients were missing or zero, so that its weights could not be ranked"


@dataclass
class LayerReport:
    """What the pruner did to one weight."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    """The pattern's name; "" if the weight was left as it is."""
    units: int
    """Units of the pattern in this weight; 0 if it was left as it is."""
    pruned_units: int
    zeros: int
    """Weights that the mask sets to zero."""
    violations: int
    """Units of the weight itself that break the pattern."""
    skipped: str | None = None
    """Why the weight was left as it is, if it was."""

    @property
    def kept_units(self) -> int:
        """Units that were not pruned."""
        return self.units - self.pruned_units

    @property
    def sparsity(self) -> float:
        """Fraction of the weight that the mask sets to zero."""
        return self.zeros / math.prod(self.shape)


@dataclass
class MaskUpdate:
    """What one mask update changed."""

    step: int
    """Optimizer steps taken before it."""
    sparsity: float
    """Of the layers that have the main pattern, after it."""
    removed: dict[str, int]
    """Weights that were kept before and are not now, by parameter name, where there are any."""
    returned: dict[str, int]
    """Weights that were pruned and are kept now: only where `allocation.regrow`."""


class Pruner:
    """Prunes parameters while an optimizer trains them.

    Before each optimizer step the criterion observes weights and gradients; after it the masks are updated if one
    is due, and pruned weights and their optimizer moments are exactly +0.0. Pruned units never come back, unless
    `allocation.regrow`. A step that a GradScaler skips counts for nothing; one with gradients that are not finite
    changes neither scores nor masks, and an update due then waits for the next.

    Args:
        parameters: the weights to prune by name; names order ties and key the saved masks.
        pattern, schedule, criterion, allocation, regularizer: see their modules; snip-momentum, global and none if
            not given.
        length: of the training, which the schedule divides.

    Raises:
        PruningError: no parameter fits the pattern, a target cannot be reached with those that fit, or the schedule
            does not fit into the training.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        pattern: Pattern,
        schedule: Schedule,
        length: TrainingLength,
        criterion: Criterion | None = None,
        allocation: Allocation | None = None,
        regularizer: Regularizer | None = None,
    ) -> None:
        self.pattern, self.schedule, self.length = pattern, schedule, length
        self.criterion = criterion if criterion is not None else SnipMomentum()
        self.allocation = allocation if allocation is not None else Global()
        self.regularizer = regularizer if regularizer is not None else Regularizer()
        self.plan = Plan(parameters, pattern, self.allocation)
        for name in self.plan.frozen:
            parameters[name].requires_grad_(False)
        self._patterns = self.plan.patterns
        self.parameters = {name: parameters[name] for name in sorted(self._patterns)}
        self.updates = schedule.steps(length) if self.plan.prunes else {}
        """Optimizer steps taken before an update -> progress of the schedule."""
        self.plan.check(schedule, self.regularizer)
        self.steps_taken = 0
        self.history: list[MaskUpdate] = []
        """What each mask update changed."""
        self.skipped_observations = 0
        """Steps whose gradients were not finite."""
        self.update_seconds = 0.0
        """Wall-clock seconds that mask updates took since this object was made."""
        self._last_update = -1  # the step that the last update made was for
        self._fractions = {repr(group.pattern): 0.0 for group in self.plan.groups}  # of the units, pruned
        self._state: dict[str, dict[str, Tensor]] = {name: {} for name in self.parameters}  # the criterion's
        self._masks: dict[str, Tensor] = {}  # pooled, bool, True = kept
        self._bits: dict[str, Tensor] = {}  # the masks as 0 and -1
        self._skip = self._poisoned = False  # of the optimizer step in progress
        self._warned: set[str] = set()
        self._step_frame: Any = None  # torch's, around the optimizer step in progress
        self._optimizer: Optimizer | None = None
        self._hooks: list[Any] = []

    @property
    def sparsity(self) -> float:
        """What the last update made of the layers that have the main pattern."""
        return self._fractions.get(repr(self.pattern), 0.0) * self.pattern.max_sparsity

    # --- in the training loop -------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Let every step of `optimizer` observe, prune and enforce. Hook the torch optimizer, not a wrapper of it.

        Raises:
            PruningError: it does not train all that is to be pruned, lacks what the criterion reads, or there is
                nothing to lock.
        """
        if self._optimizer is not None:
            raise PruningError("the pruner is attached to an optimizer already")
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        foreign = [name for name, p in self.parameters.items() if id(p) not in owned]
        if foreign:
            raise PruningError(f"the optimizer does not train {foreign[0]} (and {len(foreign) - 1} more to be pruned)")
        if self.criterion.needs_second_moment and not isinstance(optimizer, (Adam, AdamW, NAdam, RAdam)):
            raise PruningError(
                f"{type(self.criterion).__name__} reads the second moment of Adam, which {type(optimizer).__name__} "
                "does not have; take another criterion or optimizer"
            )
        self._lock()
        self._optimizer = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_load_state_dict_post_hook(lambda _: self._enforce()),
        ]
        self.plan.warn()
        if not self.steps_taken:
            self._update_if_due()  # an update at step 0
        self._enforce()  # after a resume

    def detach(self) -> None:
        """Let go of the optimizer. From then on nothing keeps pruned weights at zero."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._optimizer = [], None

    def _lock(self) -> None:
        """Take over the zeros of the weights whose pattern is to keep them."""
        locked = {name: p for group in self.plan.groups if group.pattern.locks for name, p in self._of(group)}
        masks = {name: self._masks.get(name, as_matrix(p.detach()) != 0) for name, p in locked.items()}
        if locked and all(bool(mask.all()) for mask in masks.values()):
            raise PruningError(
                f"Locked(): none of the {len(locked)} weights has a zero to keep (such as {next(iter(locked))}); "
                "start from a sparse checkpoint"
            )
        for name, mask in masks.items():
            self._set_mask(name, mask)

    def _of(self, group: Group) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, self.parameters[name]) for name in group.shapes)

    def _is_inner_step(self, frame: Any) -> bool:
        """Whether torch calls the hooks for a base class whose step a subclass calls within its own, which would count
        twice. `frame` is torch's around the step; a counter would stick when a step raises.
        """
        while self._step_frame is not None and frame is not None:
            frame = frame.f_back
            if frame is self._step_frame:
                return True
        return False

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        frame = sys._getframe(1)
        if self._is_inner_step(frame):
            return None
        self._step_frame = frame
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._prepare(optimizer)
            return None
        waiting = True

        def then_prepared() -> Any:  # the gradients are made in here
            nonlocal waiting
            loss = closure()
            if waiting:
                self._prepare(optimizer)
                waiting = False
            return loss

        return (args[0], *args[2:]), {**kwargs, "closure": then_prepared}

    @torch.no_grad()
    def _prepare(self, optimizer: Optimizer) -> None:
        """All that precedes the optimizer's own work: observe, regularize, and clear what is pruned."""
        # A GradScaler calls fused optimizers even when it skips, with the gradients still scaled.
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        self._skip = found_inf is not None and bool(found_inf.item())
        if self._skip:
            return
        self._poisoned = False
        if self._last_update < max(self.updates, default=-1):
            scale = 1.0 if scale is None else float(scale)
            self.observe(1.0 / scale)
            self._regularize(scale)
        for name, p in self.parameters.items():
            if name in self._bits:
                self._zero(name, p)  # in case the loop has put something there
                if p.grad is not None:
                    self._zero(name, p.grad)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if sys._getframe(1) is not self._step_frame:
            return
        self._step_frame = None
        if self._skip:
            return
        self.steps_taken += 1
        if not self._update_if_due() and type(optimizer) not in _KEEPS_ZEROS:
            self._enforce()

    @torch.no_grad()
    def observe(self, gradient_scale: float = 1.0) -> None:
        """Let the criterion see the gradients of this step. Non-finite gradients leave the scores as they are."""
        due = self._due(self.steps_taken + 1) is not None
        if not (self.criterion.needs_gradient or due):
            return
        seen = [(name, pattern, p, p.grad) for name, pattern, p in self._pruned_by_updates() if p.grad is not None]
        # All of them before any score changes. Without a criterion that reads them too: the masks of an update that is
        # due would follow from what such gradients make of the weights.
        self._poisoned = not _all_finite([gradient for *_, gradient in seen])
        if self._poisoned:
            self.skipped_observations += 1
            log.warning("step %d: gradients are not finite; this step does not count for the scores", self.steps_taken)
        elif self.criterion.needs_gradient:
            for name, pattern, p, gradient in seen:
                observed = self.criterion.observation(_float_matrix(p), _float_matrix(gradient, gradient_scale))
                self.criterion.accumulate(self._state[name], pattern.pool(observed, self.criterion.reduction))

    def _pruned_by_updates(self) -> Iterator[tuple[str, Pattern, nn.Parameter]]:
        for group in self.plan.groups:
            if group.pattern.prunes:
                yield from ((name, group.pattern, p) for name, p in self._of(group))

    def _regularize(self, scale: float) -> None:
        if self._poisoned or type(self.regularizer) is Regularizer:
            return
        for _, pattern, p in self._pruned_by_updates():
            if p.grad is not None:
                pull = self.regularizer.gradient(_float_matrix(p), pattern)
                if pull is not None:
                    p.grad.add_(pull.view(p.shape), alpha=scale)

    def _due(self, steps_taken: int) -> int | None:
        """The latest update not made yet that is due after so many steps."""
        return max((step for step in self.updates if self._last_update < step <= steps_taken), default=None)

    def _update_if_due(self) -> bool:
        """Make the update that is due, if any, and say whether it was made."""
        due = self._due(self.steps_taken)
        if due is None or self._poisoned:
            return False
        begin = time.perf_counter()
        made = self.prune(self.updates[due])
        self.update_seconds += time.perf_counter() - begin
        if made:
            self._last_update = due
        return made

    @torch.no_grad()
    def prune(self, progress: float) -> bool:
        """Choose the units to go at this progress of the schedule, those already pruned first, and zero them.

        The optimizer's step calls it when an update is due.

        Returns:
            Whether there was anything to rank them by. If not, nothing is changed.
        """
        wanted = [(group, self._fraction(group, progress)) for group in self.plan.groups if group.pattern.prunes]
        wanted = [(group, fraction) for group, fraction in wanted if fraction > 0]
        chosen = [self._choose(group, fraction) for group, fraction in wanted]
        update = MaskUpdate(self.steps_taken, self.sparsity, {}, {})
        for masks in chosen:
            for name, mask in masks.items():
                self._note(update, name, mask)
                self._set_mask(name, mask)
        self._enforce()
        if any(chosen):
            self.history.append(update)
        return not wanted or any(chosen)

    def _note(self, update: MaskUpdate, name: str, mask: Tensor) -> None:
        """Count the weights that a new mask takes and gives back."""
        before = self._masks.get(name)
        weights = self.parameters[name].numel() // mask.numel()  # behind each entry of the mask
        taken = ~mask if before is None else before & ~mask
        if removed := int(taken.count_nonzero()):
            update.removed[name] = removed * weights
        if before is not None and self.allocation.regrow and (returned := int((mask & ~before).count_nonzero())):
            update.returned[name] = returned * weights

    def _fraction(self, group: Group, progress: float) -> float:
        """The fraction of a group's units that is to go."""
        fraction = group.pattern.unit_fraction(self.schedule.sparsity(progress, group.pattern.target))
        return fraction if self.allocation.regrow else max(fraction, self._fractions[repr(group.pattern)])

    def _choose(self, group: Group, fraction: float) -> dict[str, Tensor]:
        """The masks of one group. Layers without scores keep theirs, and their units are not in the budget."""
        pattern = group.pattern
        costs: dict[str, Tensor] = {}
        losers: dict[str, Tensor] = {}
        for name, p in self._of(group):
            score = self._score(name, pattern, p)
            if score is not None:
                losers[name] = pattern.losers(score)
                costs[name] = pattern.cost(score, losers[name])
        if not costs:
            self._warn_once(
                f"no layer for pattern {pattern} has a gradient other than zero yet: its masks wait for one"
            )
            return {}
        if len(costs) < len(group.shapes):
            silent = sorted(group.shapes.keys() - costs.keys())
            self._warn_once(f"{silent[0]} (and {len(silent) - 1} more) cannot be pruned: {_NO_EVIDENCE}")
        quotas = group.quotas(self.allocation, fraction / pattern.unit_fraction(pattern.target))
        self._fractions[repr(pattern)] = fraction
        quotas = {name: quotas[name] for name in costs}
        if not self.allocation.regrow:  # rounding, or a layer that fell silent, may ask for less than is gone already
            for name in costs.keys() & self._masks.keys():
                quotas[name].gone = self._pruned_units(name)
            total = sum(quota.units * quota.zeros for quota in quotas.values())
            fraction = max(fraction, sum(quota.gone * quota.zeros for quota in quotas.values()) / total)
        chosen = self.allocation.select(costs, fraction, quotas)
        return {name: pattern.mask(losers[name], pruned) for name, pruned in chosen.items()}

    def _score(self, name: str, pattern: Pattern, parameter: nn.Parameter) -> Tensor | None:
        """Pooled scores, -inf where pruned already, so that these go first and never return; None if unknown."""
        moment = None
        if self._optimizer is not None and self.criterion.needs_second_moment:
            moment = self._optimizer.state.get(parameter, {}).get("exp_avg_sq")
        layer = Layer(
            name,
            as_matrix(parameter.detach()),
            self._state[name],
            None if moment is None else as_matrix(moment),
            partial(pattern.pool, reduction=self.criterion.reduction),
        )
        score = self.criterion.saliency(layer)
        learns = self.criterion.needs_gradient or self.criterion.needs_second_moment
        mask = self._masks.get(name)
        if score is None or (learns and not _any(score) and (mask is None or bool(mask.any()))):
            return None  # but for a layer that is wholly pruned, whose w * g are all zero
        return score if mask is None or self.allocation.regrow else score.masked_fill(~mask, -torch.inf)

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warning("step %d: %s", self.steps_taken, message)

    def _set_mask(self, name: str, mask: Tensor) -> None:
        self._masks[name], self._bits[name] = mask, mask.to(torch.int8).neg_()

    @torch.no_grad()
    def _enforce(self) -> None:
        """Zero pruned weights and the optimizer's moments of them, which alive would keep pushing."""
        for name, p in self.parameters.items():
            if name not in self._bits:
                continue
            self._zero(name, p)
            state = {} if self._optimizer is None else self._optimizer.state.get(p, {})
            for moment in state.values():
                if isinstance(moment, Tensor) and moment.shape == p.shape and moment.is_floating_point():
                    self._zero(name, moment)

    def _zero(self, name: str, tensor: Tensor) -> None:
        """Set the pruned entries of a tensor shaped like the weight to +0.0.

        A bitwise AND with 0 or -1: unlike a multiplication it leaves neither -0.0 nor NaN, a mask of one number per
        block is enough, and it is several times faster than `masked_fill_`.
        """
        data = tensor.detach()
        whole = data.contiguous()
        integers = whole.view(_INTEGER_OF_SIZE[whole.element_size()]).view(matrix_shape(whole.shape))
        view, bits = self._patterns[name].tile(integers, self._bits[name])
        view.bitwise_and_(bits)
        if whole is not data:
            data.copy_(whole)

    # --- afterwards -----------------------------------------------------------------------------------------

    def check_reached(self) -> None:
        """Raise PruningError if the training ended before the last update, or short of a target."""
        if not self.updates:
            return
        last = max(self.updates)
        if self._last_update < last:
            why = (
                f"before the last mask update at step {last}"
                if self.steps_taken < last
                else "without a gradient to rank weights by for the last mask update"
            )
            raise PruningError(
                f"the training ended after {self.steps_taken} optimizer steps, {why}: sparsity is {self.sparsity:g}, "
                f"not {self.pattern.target:g}"
            )
        rows = {row.name: row for row in self.report() if row.skipped is None}
        for group in self.plan.groups:
            of_group = [rows[name] for name in group.shapes if name in rows and group.pattern.prunes]
            elements, zeros = sum(math.prod(row.shape) for row in of_group), sum(row.zeros for row in of_group)
            unit = max((math.prod(row.shape) / row.units for row in of_group), default=0)
            if group.pattern.target * elements - zeros > unit * len(of_group):  # uniform rounds each layer
                raise PruningError(
                    f"pattern {group.pattern}: sparsity is {zeros / elements:g}, not {group.pattern.target:g}, over "
                    "the layers that could be pruned"
                )

    def report(self) -> list[LayerReport]:
        """One entry per weight, also for those left as they are, in the order of their names."""
        rows = []
        for name, shape in self.plan.shapes.items():
            row = LayerReport(name, tuple(shape), "", 0, 0, 0, 0, self.plan.left.get(name))
            if name in self.parameters:
                self._describe(row)
            rows.append(row)
        return rows

    def _describe(self, row: LayerReport) -> None:
        pattern, mask = self._patterns[row.name], self._masks.get(row.name)
        due = self.updates.get(self._last_update)
        if mask is None and pattern.prunes and due is not None and self.schedule.sparsity(due, pattern.target) > 0:
            row.skipped = _NO_EVIDENCE
            return
        matrix = as_matrix(self.parameters[row.name].detach())
        row.pattern, row.units = str(pattern), matrix.numel() // pattern.unit_size(matrix.shape)
        if mask is None:
            return
        row.pruned_units = self._pruned_units(row.name)
        row.zeros = row.pruned_units * (1 if pattern.locks else pattern.unit_zeros(matrix.shape))
        row.violations = pattern.violations(matrix)

    def _pruned_units(self, name: str) -> int:
        pattern, mask = self._patterns[name], self._masks[name]
        shape = matrix_shape(self.parameters[name].shape)
        entries = mask.numel() * pattern.unit_size(shape) // shape.numel()  # of the mask, in a unit
        zeros = mask.numel() - int(mask.count_nonzero())
        return zeros // (1 if pattern.locks else round(pattern.max_sparsity * entries))

    def _identity(self) -> dict[str, str]:
        return {
            "pattern": repr(self.pattern),
            "criterion": repr(self.criterion),
            "allocation": repr(self.allocation),
            "schedule": repr(self.schedule),
            "length": repr(self.length),
            "regularizer": repr(self.regularizer),
            "layers": json.dumps({name: list(p.shape) for name, p in self.parameters.items()}),
        }

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that a rebuilt pruner needs to go on bit for bit: tensors for safetensors, and plain text."""
        tensors = {
            f"score/{key}/{name}": t.contiguous() for name, state in self._state.items() for key, t in state.items()
        }
        tensors |= {f"mask//{name}": t.contiguous() for name, t in self._masks.items()}
        progress = {
            "steps_taken": str(self.steps_taken),
            "last_update": str(self._last_update),
            "fractions": json.dumps(self._fractions),
            "history": json.dumps([asdict(update) for update in self.history]),
            "tensors": json.dumps(sorted(tensors)),
        }
        return tensors, self._identity() | progress

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, str]) -> None:
        """Take over a state made by `state_dict` of a pruner built with the same arguments.

        Raises:
            PruningError: it was built with others, or is not whole; the message names the first difference.
        """
        for key, mine in self._identity().items():
            if values.get(key) != mine:
                raise PruningError(f"the saved pruner differs in its {key}: {_difference(key, values.get(key), mine)}")
        for key in ("steps_taken", "last_update", "fractions", "history", "tensors"):
            if key not in values:
                raise PruningError(f"the saved pruner lacks {key}")
        missing = [key for key in json.loads(values["tensors"]) if key not in tensors]
        if missing:
            raise PruningError(f"the saved pruner lacks {missing[0]}")
        state: dict[str, dict[str, Tensor]] = {name: {} for name in self.parameters}
        masks: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            kind, buffer, name = key.split("/", 2)
            expected = self._pooled_shape(name) if name in self.parameters else None
            if tensor.shape != expected:
                raise PruningError(f"the saved pruner has {key} of shape {tuple(tensor.shape)}, not {expected}")
            copy = tensor.to(self.parameters[name].device, copy=True)  # updated in place
            if kind == "mask":
                masks[name] = copy
            else:
                state[name][buffer] = copy
        self._state, self._masks, self._bits = state, {}, {}
        for name, mask in masks.items():
            self._set_mask(name, mask)
        self.steps_taken, self._last_update = int(values["steps_taken"]), int(values["last_update"])
        self._fractions = json.loads(values["fractions"])
        self.history = [MaskUpdate(**update) for update in json.loads(values["history"])]

    def _pooled_shape(self, name: str) -> torch.Size:
        matrix = torch.empty(matrix_shape(self.parameters[name].shape), device="meta")
        return self._patterns[name].pool(matrix).shape


def _float_matrix(tensor: Tensor, scale: float = 1.0) -> Tensor:
    matrix = as_matrix(tensor.detach()).float()
    return matrix if scale == 1 else matrix * scale


def _any(values: Tensor) -> bool:
    """Whether there is anything but zero; seen in the first row, as a rule."""
    return bool(values[:1].any()) or bool(values.any())


def _all_finite(tensors: Sequence[Tensor]) -> bool:
    """A sum is the fastest look at all numbers; one that overflows is looked at again."""
    if not tensors or bool(torch.stack([t.sum().float() for t in tensors]).isfinite().all()):
        return True
    return all(bool(t.isfinite().all()) for t in tensors)


def _difference(key: str, there: str | None, here: str) -> str:
    """The first difference of two identities, in words."""
    if key != "layers" or there is None:
        return f"{there} there, {here} here"
    theirs, ours = json.loads(there), json.loads(here)
    name = min(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return f"{name} is {theirs.get(name, 'not pruned')} there, {ours.get(name, 'not pruned')} here"

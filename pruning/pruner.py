"""The pruner: the only owner of masks. It lives in the optimizer's step, so that it works in any training loop."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pruning.allocation import Allocation
from pruning.criteria import Criterion
from pruning.errors import PruningError
from pruning.patterns import Pattern

log = logging.getLogger(__name__)

_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class LayerReport:
    """What the pruner did to one weight."""

    name: str
    shape: tuple[int, ...]
    units: int
    """Units of the pattern in this weight; 0 if it was left dense."""
    pruned_units: int
    zeros: int
    """Weights that the masks set to zero."""
    skipped: str | None = None
    """Why the weight was left dense, if it was."""

    @property
    def sparsity(self) -> float:
        """Fraction of the weight that is zero."""
        return self.zeros / math.prod(self.shape)


class Pruner:
    """Prunes parameters while an optimizer trains them.

    Before each optimizer step the criterion observes weights and gradients; after it the masks are updated if one
    is due, and pruned weights and their optimizer moments are exactly +0.0. Pruned units never come back.

    Args:
        parameters: the weights to prune by name; names order ties and key the saved masks.
        pattern, criterion, allocation: see their modules.
        updates: optimizer steps taken -> sparsity from then on, as `Schedule.updates` gives it.

    Raises:
        PruningError: no parameter fits the pattern, or the target cannot be reached with those that fit.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        pattern: Pattern,
        criterion: Criterion,
        allocation: Allocation,
        updates: Mapping[int, float],
    ) -> None:
        self.pattern, self.criterion, self.allocation, self.updates = pattern, criterion, allocation, dict(updates)
        self.steps_taken = 0
        self.sparsity = 0.0  # of the last update
        self.skipped_observations = 0  # steps whose gradients were not finite
        self._shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        self.skipped = {
            name: reason for name, p in parameters.items() if (reason := self._reason_to_skip(p)) is not None
        }
        self.parameters = {name: parameters[name] for name in sorted(parameters) if name not in self.skipped}
        if not self.parameters:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.skipped.items())[:3])
            raise PruningError(f"no layer can be pruned with pattern {pattern}" + (f" ({reasons})" if reasons else ""))
        for name, reason in sorted(self.skipped.items()):
            log.warning("%s is left dense: %s", name, reason)
        self._units = {name: p.numel() // pattern.unit_size for name, p in self.parameters.items()}
        self._caps = allocation.caps(self._units, pattern.max_sparsity)
        allocation.check(self._units, pattern.unit_fraction(pattern.target), pattern.max_sparsity)
        self._scores: dict[str, Tensor] = {}  # pooled, float32
        self._masks: dict[str, Tensor] = {}  # pooled, bool, True = kept
        self._bits: dict[tuple[str, torch.dtype], Tensor] = {}  # the masks as 0 and -1, made when first needed
        self._skip = False  # whether the optimizer step in progress is one that a GradScaler skips

    def _reason_to_skip(self, parameter: nn.Parameter) -> str | None:
        return self.pattern.misfit(parameter.shape) if parameter.requires_grad else "it is frozen"

    # --- in the training loop -------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Let every step of `optimizer` observe, prune and enforce. Hook the torch optimizer, not a wrapper of it."""
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        foreign = [name for name, p in self.parameters.items() if id(p) not in owned]
        if foreign:
            raise PruningError(f"the optimizer does not train {foreign[0]} (and {len(foreign) - 1} more to be pruned)")
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        self._update_if_due()  # an update at step 0; after a resume this enforces the masks
        self._enforce(optimizer)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # A GradScaler calls fused optimizers even when it skips, with the gradients still scaled.
        found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
        self._skip = found_inf is not None and bool(found_inf.item())
        if not self._skip and self.updates and self.steps_taken < max(self.updates):
            self.observe(1.0 if scale is None else 1.0 / float(scale))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._skip:
            return
        self.steps_taken += 1
        self._update_if_due()
        self._enforce(optimizer)

    @torch.no_grad()
    def observe(self, gradient_scale: float = 1.0) -> None:
        """Let the criterion see the gradients of this step. Non-finite gradients leave the scores as they are."""
        if not self.criterion.needs_gradient:
            return
        pooled = {
            name: self.pattern.pool(self.criterion.observation(p.detach().float(), p.grad.float() * gradient_scale))
            for name, p in self.parameters.items()
            if p.grad is not None
        }
        if not pooled:
            return
        if not bool(torch.stack([values.sum() for values in pooled.values()]).isfinite().all()):
            self.skipped_observations += 1
            log.warning("step %d: gradients are not finite; this step does not count for the scores", self.steps_taken)
            return
        for name, values in pooled.items():
            state = self._scores.get(name)
            if state is None:
                state = self._scores[name] = torch.zeros_like(values)
            self.criterion.accumulate(state, values)

    def _update_if_due(self) -> None:
        due = self.updates.get(self.steps_taken)
        if due is not None and due > self.sparsity:
            self.prune_to(due)

    @torch.no_grad()
    def prune_to(self, sparsity: float) -> None:
        """Choose exactly `round(s * units)` units, those already pruned first. `_enforce` zeroes their weights."""
        scores = {name: self._saliency(name, p) for name, p in self.parameters.items()}
        costs = {name: self.pattern.cost(score) for name, score in scores.items()}
        chosen = self.allocation.select(costs, self.pattern.unit_fraction(sparsity), self._caps)
        self._masks = {name: self.pattern.mask(scores[name], pruned) for name, pruned in chosen.items()}
        self._bits = {}
        self.sparsity = sparsity

    def _saliency(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Pooled scores as a tensor of its own; -inf where pruned already, so that these go first and never return."""
        state = self._scores.get(name)
        if state is None and self.criterion.needs_gradient:
            raise PruningError(f"{name} never had a gradient: it cannot be scored by {type(self.criterion).__name__}")
        score = self.criterion.saliency(parameter.detach(), state, self.pattern.pool)
        mask = self._masks.get(name)
        return score.clone() if mask is None else score.masked_fill(~mask, -torch.inf)

    def _pruned_units(self, name: str) -> Tensor:
        """Bool [units] from the mask, which has one entry per block or m per N:M group."""
        return self._masks[name].view(self._units[name], -1).logical_not().any(1)

    @torch.no_grad()
    def _enforce(self, optimizer: Optimizer) -> None:
        if not self._masks:
            return
        for name, p in self.parameters.items():
            self._zero(name, p)
            for moment in optimizer.state.get(p, {}).values():
                if isinstance(moment, Tensor) and moment.shape == p.shape:
                    self._zero(name, moment)  # alive, they would keep pushing

    def _zero(self, name: str, tensor: Tensor) -> None:
        """Set the pruned entries of a tensor shaped like the weight to +0.0.

        A bitwise AND with 0 or -1: unlike a multiplication it leaves neither -0.0 nor NaN, and a mask of one number
        per block is enough.
        """
        integer = _INTEGER_OF_SIZE[tensor.element_size()]
        bits = self._bits.get((name, integer))
        if bits is None:
            bits = self._bits[name, integer] = self._masks[name].to(integer).neg_()
        data = tensor.detach()
        whole = data if data.is_contiguous() else data.contiguous()
        view, mask = self.pattern.tile(whole.view(integer), bits)
        view.bitwise_and_(mask)
        if whole is not data:
            data.copy_(whole)

    # --- afterwards -----------------------------------------------------------------------------------------

    def check_reached(self) -> None:
        """Raise PruningError if the training ended before the last update."""
        if self.updates and self.steps_taken < max(self.updates):
            raise PruningError(
                f"the training ended after {self.steps_taken} optimizer steps, before the last mask update at step "
                f"{max(self.updates)}: sparsity is {self.sparsity:g}, not {self.pattern.target:g}"
            )

    def report(self) -> list[LayerReport]:
        """One entry per weight, also for those left dense, in the order of their names."""
        rows = []
        for name, shape in sorted(self._shapes.items()):
            if name in self.skipped:
                rows.append(LayerReport(name, shape, 0, 0, 0, self.skipped[name]))
                continue
            pruned = int(self._pruned_units(name).sum()) if name in self._masks else 0
            rows.append(LayerReport(name, shape, self._units[name], pruned, pruned * self.pattern.unit_zeros))
        return rows

    def _identity(self) -> dict[str, str]:
        return {
            "pattern": repr(self.pattern),
            "criterion": repr(self.criterion),
            "allocation": repr(self.allocation),
            "updates": repr(sorted(self.updates.items())),
            "layers": repr([(name, tuple(p.shape)) for name, p in self.parameters.items()]),
        }

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that a rebuilt pruner needs to go on bit for bit: tensors for safetensors, and plain text."""
        tensors = {f"score/{name}": t.contiguous() for name, t in self._scores.items()}
        tensors |= {f"mask/{name}": t.contiguous() for name, t in self._masks.items()}
        progress = {"steps_taken": str(self.steps_taken), "sparsity": repr(self.sparsity)}
        return tensors, self._identity() | progress

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, str]) -> None:
        """Take over a state made by `state_dict` of a pruner built with the same arguments.

        Raises:
            PruningError: it was built with others; the message names the first difference.
        """
        for key, mine in self._identity().items():
            if values.get(key) != mine:
                raise PruningError(f"the saved pruner differs in its {key}: {values.get(key)} there, {mine} here")
        device = next(iter(self.parameters.values())).device
        of = {kind: {} for kind in ("score", "mask")}
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            of[kind][name] = tensor.to(device, copy=True)  # updated in place
        self._scores, self._masks, self._bits = of["score"], of["mask"], {}
        self.steps_taken, self.sparsity = int(values["steps_taken"]), float(values["sparsity"])

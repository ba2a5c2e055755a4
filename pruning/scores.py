"""Scores: the criterion's state of each parameter, one number or a few per unit, and the ranking that it gives."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor
from torch.optim import Optimizer

from pruning.coupled import CoupledWeights, Weight
from pruning.criteria import Criterion, Layer
from pruning.groups import Group
from pruning.masks import Masks
from pruning.matrices import as_matrix, from_matrix
from pruning.plan import Plan
from pruning.regularizers import Regularizer
from pruning.zeros import unit_costs


class Scores:
    """What a criterion has observed of the parameters of a plan.

    Args:
        criterion: ranks the units.
        plan: names the parameters and their patterns.
    """

    def __init__(self, criterion: Criterion, plan: Plan) -> None:
        self.criterion, self._plan = criterion, plan
        self.state: dict[str, dict[str, Tensor]] = {name: {} for name in plan.parameters}
        """The criterion's tensors by parameter name."""

    @property
    def needs_gradient(self) -> bool:
        """Whether a criterion observes each step."""
        return any(self.criterion_for(name).needs_gradient for name, *_ in self._plan.pruned())

    def criterion_for(self, name: str) -> Criterion:
        """The criterion of a parameter."""
        return self._plan.criteria.get(name, self.criterion)

    def no_evidence(self, name: str) -> str:
        """Why a parameter that has no scores is not pruned."""
        what = self.criterion_for(name).evidence
        return f"its {what}s were missing or zero, so that its weights could not be ranked"

    def observe(self, gradient_scale: float = 1.0) -> bool:
        """Take in the gradients of an optimizer step, unless one is not finite.

        Args:
            gradient_scale: what gradients have to be multiplied by.

        Returns:
            Whether all gradients are finite. They are looked at even where the criterion does not read them: the masks
            of an update would follow from what such gradients make of the weights.
        """
        observed = [(name, pattern, p, p.grad) for name, pattern, p in self._plan.pruned() if p.grad is not None]
        if not _all_finite([gradient for *_, gradient in observed]):  # before any score changes
            return False
        for name, pattern, p, gradient in observed:
            criterion = self.criterion_for(name)
            if criterion.needs_gradient:
                values = criterion.observation(float_matrix(p), float_matrix(gradient, gradient_scale))
                criterion.accumulate(self.state[name], pattern.pool(values, criterion.reduction))
        return True

    def costs(
        self, group: Group, masks: Masks, optimizer: Optimizer | None, regrow: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Costs of units and, in each unit, the losers; of the group's layers that something is known of."""
        known = ((name, self.of(name, masks, optimizer, regrow)) for name in group.shapes)
        scores = {name: score for name, score in known if score is not None}
        losers = {name: group.pattern.losers(score) for name, score in scores.items()}
        costs = {name: unit_costs(self._plan, masks, name, score, losers[name]) for name, score in scores.items()}
        weighed = group.macs or group.saved
        return {name: cost / group.rate(name) if name in weighed else cost for name, cost in costs.items()}, losers

    def calibrate(self, scores: Mapping[str, Tensor]) -> None:
        """Replace the scores of a criterion that reads calibration data.

        Args:
            scores: [out, in] by parameter name; those of biases are [out].
        """
        for name, pattern, weight in self._plan.pruned():
            coupled = isinstance(weight, CoupledWeights)
            values = weight.gather(lambda part: scores.get(part.name)) if coupled else scores.get(name)
            if values is not None:
                self.state[name] = {"score": pattern.pool(values, self.criterion.reduction)}

    def of(self, name: str, masks: Masks, optimizer: Optimizer | None, regrow: bool) -> Tensor | None:
        """The pooled scores of a parameter; None if nothing is known of it.

        Units that are pruned already score -inf, so that they go first and never return, unless `regrow`.
        """
        parameter, pattern, criterion = self._plan.parameters[name], self._plan.patterns[name], self.criterion_for(name)
        moment = None
        if optimizer is not None and criterion.needs_second_moment:
            moment = _second_moment(parameter, optimizer)
        layer = Layer(
            name,
            as_matrix(parameter.detach()),
            self.state[name],
            None if moment is None else as_matrix(moment),
            partial(pattern.pool, reduction=criterion.reduction),
        )
        score = criterion.saliency(layer)
        learns = criterion.needs_gradient or criterion.needs_second_moment or criterion.needs_calibration
        mask = masks.get(name)
        if score is None or (learns and not _any(score) and (mask is None or bool(mask.any()))):
            return None  # except for a layer that is wholly pruned, whose w * g are all zero
        return score if mask is None or regrow else score.masked_fill(~mask, -torch.inf)


def _second_moment(weight: Weight, optimizer: Optimizer) -> Tensor | None:
    """Adam's running mean of squared gradients in the shape of a weight, if there is one."""
    if isinstance(weight, CoupledWeights):
        return weight.gather(lambda part: _second_moment(part.parameter, optimizer))
    return optimizer.state.get(weight, {}).get("exp_avg_sq")


def float_matrix(tensor: Tensor | CoupledWeights, scale: float = 1.0) -> Tensor:
    """A tensor times a scale as a float32 matrix, without a graph."""
    matrix = as_matrix(tensor.detach()).float()
    return matrix if scale == 1 else matrix * scale


def _any(values: Tensor) -> bool:
    """Whether there is anything but zero, which the first row usually shows."""
    return bool(values[:1].any()) or bool(values.any())


def _all_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers are finite. A sum is the fastest test; one that overflows is tested again, by number."""
    if not tensors or bool(torch.stack([t.sum().float() for t in tensors]).isfinite().all()):
        return True
    return all(bool(t.isfinite().all()) for t in tensors)


def add_penalty(plan: Plan, regularizer: Regularizer, gradient_scale: float) -> None:
    """Add the gradient of the regularizer to those of the loss."""
    for _, pattern, p in plan.pruned():
        pull = None if p.grad is None else regularizer.gradient(float_matrix(p), pattern)
        if pull is None:
            continue
        if isinstance(p, CoupledWeights):
            for part, values in p.scatter(pull):
                if part.parameter.grad is not None:
                    part.view(part.parameter.grad).add_(values, alpha=gradient_scale)
        elif p.grad is not None:
            p.grad.add_(from_matrix(pull, p.shape), alpha=gradient_scale)

"""Regularizers: penalties that pull weights towards the pattern before mask updates prune them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.blocks import Block
from pruning.coupled import Coupled
from pruning.errors import PruningError
from pruning.patterns import Pattern


@dataclass
class Regularizer:
    """Base and default: no penalty."""

    def check(self, pattern: Pattern) -> None:
        """Raise PruningError if the penalty makes no sense with a pattern that prunes."""

    def gradient(self, weight: Tensor, pattern: Pattern) -> Tensor | None:
        """[out, in] float32 weight -> what is added to its gradient, or None."""
        return None


@dataclass
class GroupLasso(Regularizer):
    """weight * sum over blocks of sqrt(|b|) * ||b||_2 (Yuan and Lin 2006; for networks Wen et al. 2016, arXiv
    1608.03665, equation 2), over the blocks of the pattern.

    Its gradient, weight * sqrt(|b|) * w / ||b||_2 and 0 for a block of zeros, joins that of the loss after the
    criterion has observed the latter, in every optimizer step up to the last mask update.
    """

    weight: float = 1e-4
    """Weight of the penalty; that of the loss is 1."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise PruningError(f"weight={self.weight} must be above 0 (Regularizer() has no penalty)", self)

    def check(self, pattern: Pattern) -> None:
        if not isinstance(pattern, (Block, Coupled)):
            raise PruningError(f"GroupLasso() needs a block pattern: {pattern} has no block to shrink whole", self)

    def gradient(self, weight: Tensor, pattern: Pattern) -> Tensor | None:
        norm = pattern.pool(weight.square(), torch.sum).sqrt()
        factor = (self.weight * pattern.unit_size(weight.shape) ** 0.5 / norm).masked_fill(norm == 0, 0.0)
        pull = weight.clone(memory_format=torch.contiguous_format)
        view, tiled = pattern.tile(pull, factor)
        view.mul_(tiled)
        return pull

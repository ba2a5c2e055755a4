"""Criteria: how much a weight matters.

A criterion keeps, per weight, one tensor of the pattern's pooled shape; the pruner owns it and saves it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pruning.errors import PruningError

Pool = Callable[[Tensor], Tensor]


@dataclass
class Criterion:
    """Base of all criteria."""

    needs_gradient: ClassVar[bool] = False

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """[out, in] weight and gradient of one optimizer step -> [out, in], pooled and given to `accumulate`."""
        raise NotImplementedError

    def accumulate(self, state: Tensor, pooled: Tensor) -> None:
        """Take one step's pooled observation into `state`, in place."""
        raise NotImplementedError

    def saliency(self, weight: Tensor, state: Tensor | None, pool: Pool) -> Tensor:
        """The pooled scores; higher matters more. `state` is None for criteria that need no gradient."""
        raise NotImplementedError


@dataclass
class SnipMomentum(Criterion):
    """Running sum of SNIP scores: S <- momentum * S + scale * |w * g| at every optimizer step, S = 0 at first.

    |w * dL/dw| is the connection sensitivity of SNIP (arXiv 1810.02340, eq. 6) without its normalisation, which
    does not change a ranking. Kept per block: pooling is linear, so the pooled sum is the sum of pooled scores.
    """

    momentum: float = 0.9
    """Weight of the scores so far."""
    scale: float = 1.0
    """Weight of this step's scores."""

    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.scale <= 0:
            raise PruningError(
                f"criterion.momentum={self.momentum} criterion.scale={self.scale}: momentum in [0, 1) and scale > 0"
            )

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).abs_()

    def accumulate(self, state: Tensor, pooled: Tensor) -> None:
        state.mul_(self.momentum).add_(pooled, alpha=self.scale)

    def saliency(self, weight: Tensor, state: Tensor | None, pool: Pool) -> Tensor:
        assert state is not None
        return state


@dataclass
class Magnitude(Criterion):
    """|w|, the classic (Han et al. 2015, arXiv 1506.02626)."""

    def saliency(self, weight: Tensor, state: Tensor | None, pool: Pool) -> Tensor:
        return pool(weight.float().abs())

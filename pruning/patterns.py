"""Patterns: which weights of a matrix are pruned together.

A pattern cuts a weight matrix [out, in] into *units*; a convolution is one such matrix for each tap of its kernel, next
to each other: [out, k * k * in]. Pruning a unit zeroes the fraction `max_sparsity` of its weights: all of a block,
m - n of an N:M group.
`keep` builds a mask; `violations` detects a broken one. They share no code on purpose: each tests the other.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.selection import lowest

Reduction = Callable[..., Tensor]
"""torch.mean, torch.sum or torch.amax: (values, dim=) -> the values of a unit as one."""


@dataclass
class Pattern:
    """Base of all patterns. `target_sparsity` is the fraction of zeros, over the layers that it fits, to end with."""

    target_sparsity: float | None = field(default=0.0, kw_only=True)
    """Fraction of the weights that are zero at the end, over all layers that the pattern fits."""

    prunes: ClassVar[bool] = True
    """Whether mask updates choose units to prune."""
    locks: ClassVar[bool] = False
    """Whether the zeros that the weights have at first stay zeros."""

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        """The pattern that `str` writes as `text`, or None: the inverse of `str`, except for the target."""
        return None

    @property
    def target(self) -> float:
        """`target_sparsity`, which patterns may leave open until they are built."""
        assert self.target_sparsity is not None
        return self.target_sparsity

    @property
    def max_sparsity(self) -> float:
        """The sparsity of a unit that is pruned, and so of a weight with all its units pruned."""
        return 1.0

    @abstractmethod
    def unit_size(self, shape: torch.Size) -> int:
        """Number of weights in a unit of a matrix of this shape."""
        raise NotImplementedError

    def unit_zeros(self, shape: torch.Size) -> int:
        """Number of weights of a unit that become zero when it is pruned."""
        return round(self.max_sparsity * self.unit_size(shape))

    @abstractmethod
    def misfit(self, shape: torch.Size) -> str | None:
        """Why a matrix of this shape cannot take the pattern, or None if it can."""
        raise NotImplementedError

    @abstractmethod
    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        """[out, in] values -> the scores that the pattern needs, as few numbers as it allows."""
        raise NotImplementedError

    def losers(self, score: Tensor) -> Tensor:
        """Pooled scores -> bool in their shape: which entries of each unit are pruned if the unit is. Default: all."""
        return torch.ones((), dtype=torch.bool, device=score.device).expand(score.shape)

    def cost(self, score: Tensor, losers: Tensor) -> Tensor:
        """Pooled scores -> [units]: what is lost by pruning each unit."""
        return score.flatten()

    def mask(self, losers: Tensor, pruned: Tensor) -> Tensor:
        """`losers` and a bool [units] of pruned units -> bool mask in the shape of the scores, True = not pruned."""
        of_units = losers.reshape(pruned.numel(), -1)
        return (of_units & pruned[:, None]).logical_not_().view(losers.shape)

    def pruned(self, mask: Tensor) -> Tensor:
        """Bool mask in the shape of the scores -> bool [units]: which units it prunes."""
        return mask.logical_not().flatten()

    @abstractmethod
    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Views of a contiguous matrix and of a pooled tensor that broadcast against each other."""
        raise NotImplementedError

    @abstractmethod
    def violations(self, weight: Tensor) -> int:
        """Number of units of a [out, in] weight that break the pattern."""
        raise NotImplementedError

    def open_units(self, units: int, pruned_units: int) -> int:
        """Number of units that are meant to break the pattern."""
        return 0

    def unit_fraction(self, sparsity: float) -> float:
        """The fraction of units to prune so that the fraction `sparsity` of the weights is zero."""
        return sparsity / self.max_sparsity

    def expand(self, mask: Tensor, shape: torch.Size) -> Tensor:
        """Pooled mask -> bool mask [out, in]."""
        whole = torch.ones(shape, dtype=torch.bool, device=mask.device)
        view, tiled = self.tile(whole, mask)
        view.logical_and_(tiled)
        return whole

    def keep(self, saliency: Tensor, sparsity: float) -> Tensor:
        """The bool mask [out, in] (True = not pruned) of one weight at this sparsity.

        Exactly `round(unit_fraction(sparsity) * units)` units are pruned, cheapest first; ties break by index.

        Raises:
            PruningError: the shape does not fit, or the pattern cannot reach the sparsity.
        """
        reason = self.misfit(saliency.shape)
        if reason is not None:
            raise PruningError(reason)
        if not 0 <= sparsity <= self.max_sparsity:
            raise PruningError(f"sparsity {sparsity} is outside [0, {self.max_sparsity:g}], all that {self} can reach")
        score = self.pool(saliency)
        losers = self.losers(score)
        cost = self.cost(score, losers)
        pruned = lowest(cost, round(self.unit_fraction(sparsity) * cost.numel()))
        return self.expand(self.mask(losers, pruned), saliency.shape)


def parse(text: str, target_sparsity: float | None = None) -> Pattern:
    """The pattern of a name such as `4x1`, `2:4`, `rows` or `dense`.

    Args:
        target_sparsity: for patterns that do not determine it themselves.

    Raises:
        PruningError: there is no such pattern.
    """
    waiting: list[type[Pattern]] = [Pattern]
    while waiting:
        cls = waiting.pop()
        pattern = cls.parse(text, target_sparsity)
        if pattern is not None:
            return pattern
        waiting += cls.__subclasses__()
    raise PruningError(f"there is no pattern {text!r}: write 4x1, 2:4, rows, columns, dense or locked")


def not_a_matrix(pattern: Pattern, shape: torch.Size) -> str | None:
    return None if len(shape) == 2 else f"{pattern} needs a matrix, not a weight of shape {tuple(shape)}"


@dataclass
class _Unpruned(Pattern):
    """Every weight is a unit of its own, and none is ever chosen to be pruned."""

    prunes: ClassVar[bool] = False

    @property
    def max_sparsity(self) -> float:
        return 0.0

    def unit_size(self, shape: torch.Size) -> int:
        return 1

    def unit_fraction(self, sparsity: float) -> float:
        return 0.0

    def misfit(self, shape: torch.Size) -> str | None:
        return None

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        return values

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return matrix, pooled

    def violations(self, weight: Tensor) -> int:
        return 0


@dataclass
class Dense(_Unpruned):
    """Nothing is pruned, all else equal: the control with the same distillation and the same steps."""

    def __post_init__(self) -> None:
        if self.target_sparsity != 0:
            raise PruningError(f"target_sparsity={self.target_sparsity}: Dense() prunes nothing; leave it out", self)

    def __str__(self) -> str:
        return "dense"

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        return cls() if text == "dense" else None


@dataclass
class Locked(_Unpruned):
    """Existing zeros stay, the other weights are trained: sparse transfer (Prune-OFA, arXiv 2111.05754)."""

    locks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.target_sparsity != 0:
            raise PruningError(
                f"target_sparsity={self.target_sparsity}: Locked() takes the zeros that exist; leave it out", self
            )

    def __str__(self) -> str:
        return "locked"

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        return cls() if text == "locked" else None

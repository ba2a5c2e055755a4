"""Patterns: which weights of a matrix live or die together.

A pattern cuts a weight matrix [out, in] into *units*; a convolution's weight is taken as [out, in * k * k]. Pruning a
unit zeroes the fraction `max_sparsity` of its weights: all of a block, m - n of an N:M group.
`keep` builds a mask; `violations` recognises a broken one. They share no code on purpose: each tests the other.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from pruning.allocation import lowest
from pruning.errors import PruningError

_PAIRS = 32  # the longest group whose members are compared in pairs: beyond, a sort is faster

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
    """Whether the zeros that the weights come with are kept."""

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        """The pattern that `str` writes like this, or None: the inverse of `str`, target aside."""
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

    def unit_size(self, shape: torch.Size) -> int:
        """Number of weights in a unit of a matrix of this shape."""
        raise NotImplementedError

    def unit_zeros(self, shape: torch.Size) -> int:
        """Number of weights of a unit that become zero when it is pruned."""
        return round(self.max_sparsity * self.unit_size(shape))

    def misfit(self, shape: torch.Size) -> str | None:
        """Why a matrix of this shape cannot take the pattern, or None if it can."""
        raise NotImplementedError

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        """[out, in] values -> the scores that the pattern needs, as few numbers as it allows."""
        raise NotImplementedError

    def losers(self, score: Tensor) -> Tensor:
        """Pooled scores -> bool in their shape: what goes of each unit if it is pruned. All of it, here."""
        return torch.ones((), dtype=torch.bool, device=score.device).expand(score.shape)

    def cost(self, score: Tensor, losers: Tensor) -> Tensor:
        """Pooled scores -> [units]: what is lost by pruning each unit."""
        return score.flatten()

    def mask(self, losers: Tensor, pruned: Tensor) -> Tensor:
        """`losers` and a bool [units] of pruned units -> bool mask in the shape of the scores, True = kept."""
        of_units = losers.reshape(pruned.numel(), -1)
        return (of_units & pruned[:, None]).logical_not_().view(losers.shape)

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Views of a contiguous matrix and of something pooled that broadcast against each other."""
        raise NotImplementedError

    def violations(self, weight: Tensor) -> int:
        """Number of units of a finished [out, in] weight that are not as the pattern demands."""
        raise NotImplementedError

    def open_units(self, units: int, pruned_units: int) -> int:
        """How many of so many units break the pattern by intent."""
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
        """The bool mask [out, in] (True = kept) of one weight at this sparsity.

        Exactly `round(unit_fraction(sparsity) * units)` units go, cheapest first; ties break by index.

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
        target_sparsity: taken by patterns that do not determine it themselves.

    Raises:
        PruningError: there is no such pattern.
    """
    waiting: list[type[Pattern]] = [Pattern]
    while waiting:
        cls = waiting.pop()
        found = cls.parse(text, target_sparsity)
        if found is not None:
            return found
        waiting += cls.__subclasses__()
    raise PruningError(f"there is no pattern {text!r}: write 4x1, 2:4, rows, columns, dense or locked")


def _not_a_matrix(pattern: Pattern, shape: torch.Size) -> str | None:
    return None if len(shape) == 2 else f"{pattern} needs a matrix, not a weight of shape {tuple(shape)}"


@dataclass
class Block(Pattern):
    """Blocks of `rows` output rows by `cols` input columns of a [out, in] weight: `4x1` is Block(4, 1).

    1x1 is unstructured pruning; Block(1, 0) prunes whole rows (output channels), Block(0, 1) whole columns (input
    channels). The published 4x1 numbers use this orientation; some papers' "4-block" is 1x4.
    """

    rows: int = 1
    """Consecutive output rows in a block; 0: all of them."""
    cols: int = 1
    """Consecutive input columns in a block; 0: all of them."""
    target_sparsity: float | None = field(default=0.8, kw_only=True)
    """Fraction of the weights that are zero at the end."""

    def __post_init__(self) -> None:
        if self.rows < 0 or self.cols < 0 or self.rows == self.cols == 0:
            raise PruningError(
                f"rows={self.rows}, cols={self.cols}: a block needs at least one of each; 0 stands for the whole axis, "
                "in one of them at most",
                self,
            )
        if not 0 < self.target < 1:
            raise PruningError(
                f"target_sparsity={self.target} must be in (0, 1), a fraction of zeros (Dense() prunes nothing)", self
            )

    def __str__(self) -> str:
        whole = {(1, 0): "rows", (0, 1): "columns"}
        return whole.get((self.rows, self.cols), f"{self.rows or 'all'}x{self.cols or 'all'}")

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        text = {"rows": "1xall", "columns": "allx1"}.get(text, text)
        found = re.fullmatch(r"(\d+|all)x(\d+|all)", text)
        if found is None:
            return None
        rows, cols = (0 if size == "all" else int(size) for size in found.groups())
        return cls(rows, cols) if target_sparsity is None else cls(rows, cols, target_sparsity=target_sparsity)

    def _block(self, shape: torch.Size) -> tuple[int, int]:
        return self.rows or max(1, shape[0]), self.cols or max(1, shape[1])

    def unit_size(self, shape: torch.Size) -> int:
        rows, cols = self._block(shape)
        return rows * cols

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return _not_a_matrix(self, shape)
        rows, cols = self._block(shape)
        if shape[0] % rows or shape[1] % cols:
            return f"[{shape[0]}, {shape[1]}] does not divide into blocks of {rows} rows by {cols} columns"
        return None

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        rows, cols = self._block(values.shape)
        if rows * cols == 1:
            return values
        values = values.contiguous()  # sums do not depend on how a weight is laid out
        # [out/rows, rows, in/cols, cols] -> [out/rows, in/cols], without the dimensions of length one: they cost time
        if cols == 1:
            return reduction(values.reshape(-1, rows, values.shape[1]), dim=1)
        if rows == 1:
            return reduction(values.reshape(values.shape[0], -1, cols), dim=2)
        return reduction(values.reshape(values.shape[0] // rows, rows, -1, cols), dim=(1, 3))

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = self._block(matrix.shape)
        if cols == 1:
            return matrix.view(-1, rows, matrix.shape[1]), pooled[:, None, :]
        view = matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // cols, cols)
        return view, pooled[:, None, :, None]

    def violations(self, weight: Tensor) -> int:
        """Blocks that hold both zeros and other values."""
        zero = (weight == 0).float()[None, None]
        share = torch.nn.functional.avg_pool2d(zero, self._block(weight.shape))  # fraction of zeros per block
        return int(((share > 0) & (share < 1)).sum())


@dataclass
class NofM(Pattern):
    """N:M: of every `m` consecutive weights along the input axis at most `n` are non-zero (Zhou et al. 2021).

    On the way to the target some groups are N:M and the others dense, the cheapest first; at the target all are N:M,
    unless a final mix is asked for. A group costs the sum of its `m - n` lowest scores.
    """

    n: int = 2
    """Weights that may stay in each group."""
    m: int = 4
    """Weights in a group."""
    mix: bool = False
    """Allow a lower target, at which some groups stay dense. Hardware that needs N:M cannot use such a matrix."""
    target_sparsity: float | None = field(default=None, kw_only=True)
    """1 - n/m, which is also the default: nothing else makes every group N:M."""

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise PruningError(f"n={self.n}, m={self.m}: N:M needs 0 < n < m", self)
        exact = self.max_sparsity
        given = self.target_sparsity
        if given is None or abs(given - exact) <= 1e-6:
            self.target_sparsity = exact  # 0.666667 for 1:3 means all groups, no more and no less
        elif not (self.mix and 0 < given < exact):
            raise PruningError(
                f"target_sparsity={given} is impossible for {self}: every group keeps {self.n} of {self.m} weights, "
                f"which is {exact:g}; leave it out, choose another n and m, or set mix=True and a lower target",
                self,
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + (" mix" if self.mix else "")

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        """A target counts for a mix only: without one it follows from n and m."""
        found = re.fullmatch(r"(\d+):(\d+)( mix)?", text)
        if found is None:
            return None
        mix = found[3] is not None
        return cls(int(found[1]), int(found[2]), mix, target_sparsity=target_sparsity if mix else None)

    @property
    def max_sparsity(self) -> float:
        return (self.m - self.n) / self.m

    def unit_size(self, shape: torch.Size) -> int:
        return self.m

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return _not_a_matrix(self, shape)
        if shape[1] % self.m:
            return f"[{shape[0]}, {shape[1]}] does not divide into groups of {self.m} along the input axis"
        return None

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        return values

    def losers(self, score: Tensor) -> Tensor:
        """The m - n lowest of each group, ties by index; NaN counts as +inf.

        By comparing all pairs, which costs a fraction of a sort along so short an axis; longer ones are sorted.
        """
        groups = score.reshape(-1, self.m).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if self.m > _PAIRS:
            lowest_first = groups.sort(dim=1, stable=True).indices[:, : self.m - self.n]
            return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, lowest_first, True).view(score.shape)
        places = groups.t().contiguous()  # [m, groups]: each comparison runs along memory
        rank = torch.zeros(places.shape, dtype=torch.int8, device=score.device)
        for late in range(1, self.m):
            for early in range(late):
                later_is_lower = places[late] < places[early]
                rank[early] += later_is_lower
                rank[late] += later_is_lower.logical_not_()
        return (rank < self.m - self.n).t().reshape(score.shape)

    def cost(self, score: Tensor, losers: Tensor) -> Tensor:
        return score.where(losers, 0.0).view(-1, self.m).sum(dim=1)

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return matrix, pooled

    def open_units(self, units: int, pruned_units: int) -> int:
        return units - pruned_units if self.mix else 0

    def violations(self, weight: Tensor) -> int:
        """Groups with more than n non-zero weights."""
        groups = weight.unfold(1, self.m, self.m)  # [out, in/m, m]
        return int((groups.count_nonzero(dim=2) > self.n).sum())


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
    """The zeros that the weights come with stay, the rest is trained: sparse transfer (Prune-OFA, arXiv 2111.05754)."""

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

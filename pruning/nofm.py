"""N:M groups, such as the 2:4 of sparse tensor cores."""

import re
from dataclasses import dataclass, field
from numbers import Integral
from typing import Self

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.patterns import Pattern, Reduction, not_a_matrix

_PAIRS = 32  # the longest group whose members are compared in pairs: beyond, a sort is faster


@dataclass
class NofM(Pattern):
    """N:M: of every `m` consecutive weights along the input axis at most `n` are non-zero (Zhou et al. 2021); in a
    convolution, of every `m` consecutive input channels at each tap of the kernel.

    Before the target some groups are N:M, the cheapest first, and the others dense; at the target all are N:M, unless
    `mix` allows others. A group costs the sum of its `m - n` lowest scores.
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
        if not (isinstance(self.n, Integral) and isinstance(self.m, Integral)):
            raise PruningError(f"n={self.n!r}, m={self.m!r}: N:M needs two whole numbers, such as NofM(2, 4)", self)
        self.n, self.m = int(self.n), int(self.m)  # numbers of numpy would stand in saved states
        if not 0 < self.n < self.m:
            meant = f"; did you mean {self.m}:{self.n}?" if 0 < self.m < self.n else ""
            raise PruningError(f"n={self.n}, m={self.m}: N:M needs 0 < n < m{meant}", self)
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
        match = re.fullmatch(r"(\d+):(\d+)( mix)?", text)
        if match is None:
            return None
        mix = match[3] is not None
        return cls(int(match[1]), int(match[2]), mix, target_sparsity=target_sparsity if mix else None)

    @property
    def max_sparsity(self) -> float:
        return (self.m - self.n) / self.m

    def unit_size(self, shape: torch.Size) -> int:
        return self.m

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return not_a_matrix(self, shape)
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

    def pruned(self, mask: Tensor) -> Tensor:
        return mask.view(-1, self.m).sum(dim=1) <= self.n

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return matrix, pooled

    def open_units(self, units: int, pruned_units: int) -> int:
        return units - pruned_units if self.mix else 0

    def violations(self, weight: Tensor) -> int:
        """Groups with more than n non-zero weights."""
        groups = weight.unfold(1, self.m, self.m)  # [out, in/m, m]
        return int((groups.count_nonzero(dim=2) > self.n).sum())

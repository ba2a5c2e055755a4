"""Patterns: which weights of a matrix live or die together.

A pattern cuts a weight matrix [out, in] into *units*. Pruning a unit zeroes `unit_zeros` of its `unit_size` weights.
`keep` builds a mask; `violations` recognises a broken one. They share no code on purpose: each tests the other.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from pruning.allocation import lowest
from pruning.errors import PruningError


@dataclass
class Pattern:
    """Base of all patterns. `target_sparsity` is the fraction of zeros, over the layers that it fits, to end with."""

    target_sparsity: float | None = field(default=0.0, kw_only=True)
    """Fraction of the weights that are zero at the end, over all layers that the pattern fits."""

    prunes: ClassVar[bool] = True

    @property
    def target(self) -> float:
        """`target_sparsity`, which patterns may leave open until they are built."""
        assert self.target_sparsity is not None
        return self.target_sparsity

    @property
    def unit_size(self) -> int:
        """Number of weights in a unit."""
        raise NotImplementedError

    @property
    def unit_zeros(self) -> int:
        """Number of weights of a unit that become zero when it is pruned."""
        raise NotImplementedError

    def misfit(self, shape: torch.Size) -> str | None:
        """Why a weight of this shape cannot take the pattern, or None if it can."""
        raise NotImplementedError

    def pool(self, saliency: Tensor) -> Tensor:
        """[out, in] saliency -> the scores that the pattern needs, as few numbers as it allows. Linear in its input."""
        raise NotImplementedError

    def cost(self, score: Tensor) -> Tensor:
        """Pooled scores -> [units]: what is lost by pruning each unit."""
        raise NotImplementedError

    def mask(self, score: Tensor, pruned: Tensor) -> Tensor:
        """Pooled scores and a bool [units] of pruned units -> bool mask in the shape of the scores, True = kept."""
        raise NotImplementedError

    def tile(self, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the weight and of the pooled mask that broadcast against each other."""
        raise NotImplementedError

    def violations(self, weight: Tensor) -> int:
        """Number of units of a finished [out, in] weight that are not as the pattern demands."""
        raise NotImplementedError

    @property
    def max_sparsity(self) -> float:
        """The sparsity of a weight with all its units pruned."""
        return self.unit_zeros / self.unit_size

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
        cost = self.cost(score)
        pruned = lowest(cost, round(self.unit_fraction(sparsity) * cost.numel()))
        return self.expand(self.mask(score, pruned), saliency.shape)


@dataclass
class Block(Pattern):
    """Blocks of `rows` output rows by `cols` input columns of a [out, in] weight: `4x1` is Block(4, 1).

    1x1 is unstructured pruning. The published 4x1 numbers use this orientation; some papers' "4-block" is 1x4.
    """

    rows: int = 1
    """Consecutive output rows in a block."""
    cols: int = 1
    """Consecutive input columns in a block."""
    target_sparsity: float | None = field(default=0.8, kw_only=True)
    """Fraction of the weights that are zero at the end."""

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise PruningError(f"pattern.rows={self.rows} pattern.cols={self.cols}: a block needs at least one of each")
        if not 0 < self.target < 1:
            raise PruningError(
                f"pattern.target_sparsity={self.target} is out of range: a fraction of zeros between 0 and 1 "
                "(pattern=dense prunes nothing)"
            )

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"

    @property
    def unit_size(self) -> int:
        return self.rows * self.cols

    @property
    def unit_zeros(self) -> int:
        return self.rows * self.cols

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return f"{self} needs a matrix, not a weight of shape {tuple(shape)}"
        if shape[0] % self.rows or shape[1] % self.cols:
            return f"[{shape[0]}, {shape[1]}] does not divide into blocks of {self.rows} rows by {self.cols} columns"
        return None

    def pool(self, saliency: Tensor) -> Tensor:
        if self.unit_size == 1:
            return saliency
        out_features, in_features = saliency.shape
        # [out/rows, rows, in/cols, cols] -> [out/rows, in/cols]
        blocks = saliency.reshape(out_features // self.rows, self.rows, in_features // self.cols, self.cols)
        return blocks.mean(dim=(1, 3))

    def cost(self, score: Tensor) -> Tensor:
        return score.flatten()

    def mask(self, score: Tensor, pruned: Tensor) -> Tensor:
        return pruned.logical_not().view(score.shape)

    def tile(self, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out_features, in_features = weight.shape
        view = weight.view(out_features // self.rows, self.rows, in_features // self.cols, self.cols)
        return view, mask[:, None, :, None]

    def violations(self, weight: Tensor) -> int:
        """Blocks that hold both zeros and other values."""
        zero = (weight == 0).float()[None, None]
        share = torch.nn.functional.avg_pool2d(zero, (self.rows, self.cols))  # fraction of zeros per block
        return int(((share > 0) & (share < 1)).sum())


@dataclass
class NofM(Pattern):
    """N:M: of every `m` consecutive weights along the input axis at most `n` are non-zero (Zhou et al. 2021).

    On the way to the target some groups are N:M and the others dense, the cheapest first; at the target all are N:M.
    A group costs the sum of its `m - n` lowest scores.
    """

    n: int = 2
    """Weights that may stay in each group."""
    m: int = 4
    """Weights in a group."""
    target_sparsity: float | None = field(default=None, kw_only=True)
    """1 - n/m, which is also the default: nothing else makes every group N:M."""

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise PruningError(f"pattern.n={self.n} pattern.m={self.m}: N:M needs 0 < n < m")
        exact = self.max_sparsity
        if self.target_sparsity is not None and abs(self.target_sparsity - exact) > 1e-6:
            raise PruningError(
                f"pattern.target_sparsity={self.target_sparsity} is impossible for {self}: every group keeps "
                f"{self.n} of {self.m}, which is {exact:g}; leave it out, or choose another n and m"
            )
        self.target_sparsity = exact  # 0.666667 for 1:3 means all groups, no more and no less

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def unit_size(self) -> int:
        return self.m

    @property
    def unit_zeros(self) -> int:
        return self.m - self.n

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return f"{self} needs a matrix, not a weight of shape {tuple(shape)}"
        if shape[1] % self.m:
            return f"[{shape[0]}, {shape[1]}] does not divide into groups of {self.m} along the input axis"
        return None

    def pool(self, saliency: Tensor) -> Tensor:
        return saliency

    def _lowest_first(self, score: Tensor) -> tuple[Tensor, Tensor]:
        """Values and places of the m - n lowest of each group, ties by index: two [groups, m - n] tensors."""
        ordered = score.reshape(-1, self.m).sort(dim=1, stable=True)
        return ordered.values[:, : self.unit_zeros], ordered.indices[:, : self.unit_zeros]

    def cost(self, score: Tensor) -> Tensor:
        return self._lowest_first(score)[0].sum(dim=1)

    def mask(self, score: Tensor, pruned: Tensor) -> Tensor:
        places = self._lowest_first(score)[1]
        keep = torch.ones(pruned.numel(), self.m, dtype=torch.bool, device=score.device)
        keep.scatter_(1, places, pruned.logical_not()[:, None].expand_as(places))
        return keep.view(score.shape)

    def tile(self, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return weight, mask

    def violations(self, weight: Tensor) -> int:
        """Groups with more than n non-zero weights."""
        groups = weight.unfold(1, self.m, self.m)  # [out, in/m, m]
        return int((groups.count_nonzero(dim=2) > self.n).sum())


@dataclass
class Dense(Pattern):
    """Nothing is pruned, all else equal: the control with the same distillation and the same steps."""

    prunes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.target_sparsity != 0:
            raise PruningError(
                f"pattern.target_sparsity={self.target_sparsity}: the dense control has none; leave it out"
            )

    def __str__(self) -> str:
        return "dense"

    @property
    def unit_size(self) -> int:
        return 1

    @property
    def unit_zeros(self) -> int:
        return 0

    def unit_fraction(self, sparsity: float) -> float:
        return 0.0

    def misfit(self, shape: torch.Size) -> str | None:
        return None

    def pool(self, saliency: Tensor) -> Tensor:
        return saliency

    def cost(self, score: Tensor) -> Tensor:
        return score.flatten()

    def mask(self, score: Tensor, pruned: Tensor) -> Tensor:
        return torch.ones_like(score, dtype=torch.bool)

    def tile(self, weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return weight, mask

    def violations(self, weight: Tensor) -> int:
        return 0

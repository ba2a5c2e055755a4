"""Blocks, from single weights to whole rows and columns."""

import re
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Self

import torch
from torch import Tensor

from pruning.errors import PruningError
from pruning.patterns import Pattern, Reduction, not_a_matrix


@dataclass
class Block(Pattern):
    """Blocks of `rows` output rows by `cols` input columns of a [out, in] weight: `4x1` is Block(4, 1).

    1x1 is unstructured pruning; Block(1, 0) prunes whole rows (output channels), Block(0, 1) whole columns (input
    channels). In a convolution columns are input channels at one tap of the kernel. The published 4x1 numbers use this
    orientation; some papers' "4-block" is 1x4.
    """

    rows: int = 1
    """Consecutive output rows in a block; 0: all of them."""
    cols: int = 1
    """Consecutive input columns in a block; 0: all of them."""
    target_sparsity: float | None = field(default=0.8, kw_only=True)
    """Fraction of the weights that are zero at the end."""

    def __post_init__(self) -> None:
        whole = isinstance(self.rows, Integral) and isinstance(self.cols, Integral)
        if not whole or self.rows < 0 or self.cols < 0 or self.rows == self.cols == 0:
            raise PruningError(
                f"rows={self.rows!r}, cols={self.cols!r}: a block needs at least one of each, a whole number; 0 stands "
                "for the whole axis, in one of them at most",
                self,
            )
        if not isinstance(self.target_sparsity, Real) or not 0 < self.target < 1:
            raise PruningError(
                f"target_sparsity={self.target_sparsity!r} must be in (0, 1), a fraction of zeros (Dense() prunes "
                "nothing)",
                self,
            )
        self.rows, self.cols = int(self.rows), int(self.cols)  # numbers of numpy would stand in saved states
        self.target_sparsity = float(self.target_sparsity)

    def __str__(self) -> str:
        whole = {(1, 0): "rows", (0, 1): "columns"}
        return whole.get((self.rows, self.cols), f"{self.rows or 'all'}x{self.cols or 'all'}")

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        text = {"rows": "1xall", "columns": "allx1"}.get(text, text)
        match = re.fullmatch(r"([1-9]\d*|all)x([1-9]\d*|all)", text)
        if match is None:
            return None
        rows, cols = (0 if size == "all" else int(size) for size in match.groups())
        return cls(rows, cols) if target_sparsity is None else cls(rows, cols, target_sparsity=target_sparsity)

    def block(self, shape: torch.Size) -> tuple[int, int]:
        """Rows and columns of a block in a matrix of this shape."""
        return self.rows or max(1, shape[0]), self.cols or max(1, shape[1])

    def unit_size(self, shape: torch.Size) -> int:
        rows, cols = self.block(shape)
        return rows * cols

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return not_a_matrix(self, shape)
        rows, cols = self.block(shape)
        if shape[0] % rows or shape[1] % cols:
            return f"[{shape[0]}, {shape[1]}] does not divide into blocks of {rows} rows by {cols} columns"
        return None

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        rows, cols = self.block(values.shape)
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
        rows, cols = self.block(matrix.shape)
        if cols == 1:
            return matrix.view(-1, rows, matrix.shape[1]), pooled[:, None, :]
        view = matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // cols, cols)
        return view, pooled[:, None, :, None]

    def violations(self, weight: Tensor) -> int:
        """Blocks that hold both zeros and other values. A bias [out] is a column."""
        weight = weight if weight.dim() > 1 else weight[:, None]
        zero = (weight == 0).float()[None, None]
        share = torch.nn.functional.avg_pool2d(zero, self.block(weight.shape))  # fraction of zeros per block
        return int(((share > 0) & (share < 1)).sum())

"""Weights in 4x1 blocks: the sparse form of a matrix, and the form that encoder.c reads."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROWS = 4
"""Rows of a block."""
GROUP = {"float32": 1, "bfloat16": 2, "int8": 4}
"""Precision -> columns in a group of 16 bytes, as encoder.c explains."""
_AHEAD = 64
"""Columns after the last that encoder.c may read, to prefetch."""


@dataclass(frozen=True)
class Blocks:
    """A matrix as its 4x1 blocks that are not zero (block compressed sparse rows, BSR)."""

    shape: tuple[int, int]
    """(rows, columns) of the matrix; columns <= 65536."""
    start: Tensor
    """(ceil(rows / 4) + 1,) int32: number of the first block of each block row."""
    column: Tensor
    """(blocks,) uint16."""
    value: Tensor
    """(blocks, 4) float32, bfloat16 or int8."""
    scale: Tensor | None = None
    """(4 ceil(rows / 4),) float32: a row's int8 values times this are its weights."""

    @classmethod
    def of(cls, weight: Tensor, precision: str = "float32") -> Blocks:
        """Take the blocks of a matrix that are not all zero; a negative zero is a zero.

        Args:
            weight: (rows, columns), any float type; rows after the last whole block are zero.
            precision: of the values: float32, bfloat16 (rounded to nearest even) or int8 (symmetric for each row).
        """
        rows, columns = weight.shape
        if columns > 65536:
            raise ValueError(f"{columns} columns; at most 65536 fit into 16 bits")
        full = torch.zeros(-(-rows // ROWS) * ROWS, columns)
        full[:rows] = weight.detach().float()
        blocks = full.view(-1, ROWS, columns)
        present = (blocks != 0).any(dim=1)
        row, column = present.nonzero(as_tuple=True)
        start = torch.zeros(len(present) + 1, dtype=torch.int32)
        start[1:] = present.sum(dim=1).cumsum(0)
        value = blocks[row, :, column].contiguous()
        return cls((rows, columns), start, column.to(torch.uint16), value).to(precision)

    def to(self, precision: str) -> Blocks:
        """The blocks in another precision; those of a lower one stay as exact as they are."""
        value = self.value.float()
        if self.scale is not None:
            value = value * self.scale.view(-1, ROWS)[self.row]
        if precision != "int8":
            return replace(self, value=value.to(getattr(torch, precision)), scale=None)
        rows, row = len(self.start) - 1, self.row
        largest = torch.zeros(rows, ROWS).scatter_reduce_(0, row[:, None].expand(-1, ROWS), value.abs(), "amax")
        scale = largest.clamp(min=1e-12) / 127
        return replace(self, value=(value / scale[row]).round().to(torch.int8), scale=scale.flatten())

    @property
    def valid(self) -> bool:
        """True if the numbers of blocks and columns are within the matrix, and the tensors fit each other."""
        (rows, columns), blocks = self.shape, len(self.value)
        counts = self.start.diff()
        return (
            self.start.dtype == torch.int32
            and len(self.start) == -(-rows // ROWS) + 1
            and int(self.start[0]) == 0
            and int(self.start[-1]) == blocks
            and bool((counts >= 0).all() and (counts <= columns).all())
            and self.column.shape == (blocks,)
            and self.column.dtype == torch.uint16
            and (blocks == 0 or int(self.column.long().max()) < columns)
            and self.value.shape == (blocks, ROWS)
            and str(self.value.dtype).removeprefix("torch.") in GROUP
            and (self.scale is None) == (self.value.dtype != torch.int8)
            and (self.scale is None or self.scale.shape == (ROWS * (len(self.start) - 1),))
        )

    @property
    def row(self) -> Tensor:
        """(blocks,) int64: the block row of each block."""
        return torch.repeat_interleave(torch.arange(len(self.start) - 1), self.start.diff().long())

    def used(self, dim: int) -> Tensor:
        """Rows (dim=1; a multiple of 4 of them) or columns (dim=0) that have a block, bool."""
        if dim == 1:
            return (self.start.diff() > 0).repeat_interleave(ROWS)
        return torch.zeros(self.shape[1], dtype=torch.bool).index_fill(0, self.column.long(), True)

    def select(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Blocks:
        """Some rows and columns, with the values that they have.

        Args:
            rows: (4 ceil(rows / 4),) bool, alike in the 4 rows of a block; None: all.
            columns: (columns,) bool; None: all.
        """
        all_rows, all_columns = len(self.start) - 1, self.shape[1]
        rows = torch.ones(all_rows, dtype=torch.bool) if rows is None else rows.view(-1, ROWS)[:, 0]
        columns = torch.ones(all_columns, dtype=torch.bool) if columns is None else columns
        row, column = self.row, self.column.long()
        alive = rows[row] & columns[column]
        start = torch.zeros(int(rows.sum()) + 1, dtype=torch.int32)
        start[1:] = row[alive].bincount(minlength=all_rows)[rows].cumsum(0)
        column = (columns.cumsum(0) - 1)[column[alive]].to(torch.uint16)
        scale = None if self.scale is None else self.scale.view(-1, ROWS)[rows].flatten()
        shape = self.shape[0] if bool(rows.all()) else ROWS * int(rows.sum()), int(columns.sum())
        return Blocks(shape, start, column, self.value[alive], scale)

    @property
    def density(self) -> float:
        """Share of all blocks that are present."""
        return len(self.value) / max((len(self.start) - 1) * self.shape[1], 1)

    def dense(self) -> Tensor:
        """(rows, columns) float32: the matrix again; that of float32 values bit for bit, but that -0 is 0."""
        rows, columns = self.shape
        blocks = torch.zeros(len(self.start) - 1, ROWS, columns)
        blocks[self.row, :, self.column.long()] = self.to("float32").value
        return blocks.flatten(0, 1)[:rows]


class Linear(ctypes.Structure):
    """`struct linear` of encoder.c."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("precision", "rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("start", "column", "value", "bias", "scale", "sum")),
    ]


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer in the form that encoder.c reads. The tensors are what `struct` points to."""

    struct: Linear
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, blocks: Blocks, bias: Tensor | None, precision: str) -> PackedLinear:
        """Group the blocks of each block row.

        Args:
            blocks: values in this precision.
            bias: (rows,) or None.
        """
        size, rows = GROUP[precision], len(blocks.start) - 1
        counts = blocks.start.diff()
        groups = torch.zeros(rows + 1, dtype=torch.int32)
        groups[1:] = (-(-counts // size)).cumsum(0)
        total, row = int(groups[-1]), blocks.row
        place = groups[row] * size + torch.arange(len(row)) - blocks.start[row]
        column = torch.zeros(total * size + _AHEAD, dtype=torch.int32)
        column[place] = blocks.column.to(torch.int32)
        value = torch.zeros(total * size, ROWS, dtype=blocks.value.dtype)
        value[place] = blocks.value
        value = value.view(total, size, ROWS).transpose(1, 2).contiguous()
        full = torch.zeros(rows * ROWS)
        if bias is not None:
            full[: len(bias)] = bias.detach().float()
        tensors = [groups, column.to(torch.uint16), value, full]
        if blocks.scale is not None:
            sums = torch.zeros(rows, ROWS).index_add_(0, row, blocks.value.float()).flatten() * blocks.scale
            tensors += [blocks.scale, sums]
        struct = Linear(list(GROUP).index(precision), rows * ROWS, blocks.shape[1], *(t.data_ptr() for t in tensors))
        return cls(struct, tuple(tensors))

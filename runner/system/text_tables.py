"""Tables of text: aligned columns, and tables of rich at the width that they need."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def aligned(rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows as lines, with columns of the same width.

    Args:
        rows: of the same number of cells.
        right: columns, from 0, that end in one place, as numbers do.
    """
    columns = list(zip(*rows, strict=True))
    justify = [str.rjust if at in right else str.ljust for at in range(len(columns))]
    widths = [max(map(len, column)) for column in columns]
    padded = [[to(cell, width) for cell in cells] for to, cells, width in zip(justify, columns, widths, strict=True)]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def show(console: Console, table: Table, widest: int) -> None:
    """Print a table: in a file or a pipe, which have no width, from 80 to `widest` columns as it needs."""
    from rich.measure import Measurement

    if not console.is_terminal:
        wanted = Measurement.get(console, console.options.update(width=10_000), table).maximum
        console.width = min(max(80, wanted), widest)
    console.print(table)

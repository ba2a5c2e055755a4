"""Aligned columns, and the width of tables in a pipe."""

import io

from rich.console import Console
from rich.table import Table

from runner.system.text_tables import aligned, show


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_end_in_one_place() -> None:
    rows = [("name", "ms", "note"), ("a", "12.5", ""), ("longer name", "7.0", "slow")]
    assert aligned(rows, right={1}) == [
        "name           ms  note",
        "a            12.5",
        "longer name   7.0  slow",
    ]
    assert aligned([("a", "b"), ("ccc", "d")]) == ["a    b", "ccc  d"]
    assert aligned([]) == []


def test_a_table_in_a_pipe_is_as_wide_as_it_needs_up_to_a_limit() -> None:
    def width(cell: str) -> int:
        console, table = Console(file=io.StringIO(), width=20), Table("cell")
        table.add_row(cell)
        show(console, table, widest=100)
        return console.width

    assert [width("a"), width(90 * "a"), width(200 * "a")] == [80, 94, 100]

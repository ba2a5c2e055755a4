"""Prints the table of results: for a terminal, as Markdown, LaTeX or HTML, and all figures as CSV or JSON."""

import io
import json
import re
import textwrap
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from html import escape

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from results import columns as names
from results.cells import pairs
from results.controls import Control
from results.rows import Published, Row
from results.speed import Latency
from results.table import Column, footnotes, layout

LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " "}
LATEX |= {"[": "{[}", "]": "{]}", "*": "{*}"}  # at the start of a line LaTeX reads them as arguments of the \\ before
_COMFORT = 24  # characters for a cell that may wrap, if it has so many


def terminal(rows: list[Row], width: int | None = None, wide: bool = True) -> str:
    """An aligned table of text. Numbers never wrap.

    Args:
        width: in characters. None sets every row on one line; else headers wrap, then intervals move below their
            numbers, and a table that is still too wide is split into blocks, one below the other, that repeat the
            labels.
        wide: with every figure.
    """
    columns = layout(rows, wide)
    if width is None:
        return grid(rows, columns, None)
    if not wide and least(rows, columns) > width:
        columns = [column if column.label else stacked(column) for column in columns]
    labels = [column for column in columns if column.label]
    blocks: list[list[Column]] = [[]]
    for column in columns[len(labels) :]:
        if blocks[-1] and least(rows, [*labels, *blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(grid(rows, [*labels, *block], width) for block in blocks)


def stacked(column: Column) -> Column:
    """The column with short lines in its header, and the intervals of its cells on a line of their own."""
    header = textwrap.fill(column.header, 7, break_long_words=False)
    if not column.stacks:
        return replace(column, header=header)
    return replace(column, header=header, cell=lambda row: column.cell(row).replace(" [", "\n["))


def grid(rows: list[Row], columns: list[Column], width: int | None) -> str:
    """One block of the table, wider than `width` only where cells must not wrap."""
    console = plain_console()
    table = grid_of(rows, columns, folded=width is not None)
    if width is not None:
        console.width = max(width, Measurement.get(console, console.options, table).minimum)
    console.print(table)
    output = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.rstrip() for line in output.splitlines() if line.strip())


def least(rows: list[Row], columns: list[Column]) -> int:
    """The smallest width in which a block is readable."""
    console = plain_console()
    return Measurement.get(console, console.options, grid_of(rows, columns, folded=True)).minimum


def plain_console() -> Console:
    """A console that writes into a string, without markup: labels may look like "glob([a-z])"."""
    return Console(file=io.StringIO(), width=10**6, markup=False, emoji=False, highlight=False)


def grid_of(rows: list[Row], columns: list[Column], folded: bool) -> Table:
    """The table for `rich`, with headers wrapped at 12 characters if folded."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        header = folded_header(column.header) if folded else column.header
        table.add_column(
            header,
            justify="right" if column.numeric else "left",
            no_wrap=not column.wraps,
            overflow="fold",
            min_width=column_width(column, header, rows) if folded else None,
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    return table


def folded_header(header: str) -> str:
    """The header in lines of at most 12 characters, or of a word each."""
    return "\n".join(textwrap.fill(line, 12, break_long_words=False) for line in header.splitlines())


def column_width(column: Column, header: str, rows: list[Row]) -> int:
    """The characters that a column needs: `rich` alone would wrap any cell between words."""
    longest = max((len(line) for row in rows for line in column.cell(row).splitlines()), default=0)
    return max(*map(len, header.splitlines()), min(longest, _COMFORT) if column.wraps else longest)


def markdown(rows: list[Row]) -> str:
    """A table of GitHub's Markdown."""
    columns = layout(rows)
    lines = [
        [in_markdown(column.header) for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([in_markdown(column.cell(row)) for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_markdown(text: str) -> str:
    """The text escaped for Markdown, on one line."""
    return re.sub(r"([\\|*`<&\[]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.splitlines()))


def latex(rows: list[Row]) -> str:
    """A tabular of LaTeX's booktabs package."""
    columns = layout(rows)

    cells = [[column.header for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    header, *body = (" & ".join(cell.translate(str.maketrans(LATEX)) for cell in line) + r" \\" for line in cells)
    alignment = "".join("r" if column.numeric else "l" for column in columns)
    opening = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    return "\n".join([*opening, header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def html_table(rows: list[Row], address: Callable[[Row], str | None] = lambda row: None) -> str:
    """A `<table>` element for a page, everything in it escaped.

    Args:
        address: the link of a row's first cell.
    """
    columns = layout(rows)

    def line(tag: str, cells: list[str]) -> str:
        kinds = [' class="number"' if column.numeric else "" for column in columns]
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = ""
    for row in rows:
        first, *rest = (escape(column.cell(row)) for column in columns)
        if link := address(row):
            first = f'<a href="{escape(link)}">{first}</a>'
        body += f"<tr>{line('td', [first, *rest])}</tr>\n"
    header = line("th", [escape(column.header) for column in columns])
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def html(rows: list[Row], notes: list[str] | None = None) -> str:
    """A whole page: the table, and the notes below it (None: those of the rows)."""
    notes = footnotes(rows, {}) if notes is None else notes
    listed = "".join(f"<p>{escape(note)}</p>\n" for note in notes)
    shown = f"{html_table(rows)}\n" if rows else ""
    return f"{_PAGE}{shown}{listed}</body>\n</html>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>What sparsity costs</title>
<style>
body { font-family: sans-serif; margin: 2em; }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid #ccc; padding: 0.3em 0.6em; text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
</style>
</head>
<body>
"""


def comma_separated(rows: list[Row]) -> str:
    """All scalars in full precision, under a header line; undefined ones are empty."""
    lines = [flat(Row, row) for row in rows]
    header = dict.fromkeys(name for line in [flat(Row, None), *lines] for name in line)
    # As objects: pandas would write the integers of a column with gaps as floats.
    text = pd.DataFrame(lines, columns=list(header), dtype=object).to_csv(index=False, lineterminator="\n")
    return text.rstrip("\n")


def flat(kind: type, value: Row | Control | Latency | Published | None, prefix: str = "") -> dict[str, object]:
    """The fields of a record as columns of CSV, without run ids. Those of nested records become "control_mean".

    Args:
        kind: the record's type.
        value: None gives the same names without values.
    """
    line: dict[str, object] = {}
    for field in fields(kind):
        name, item = prefix + field.name, getattr(value, field.name, None)
        if field.name in RECORDS:
            line |= flat(RECORDS[field.name], item, f"{name}_")
        elif field.name.endswith("interval"):
            line[f"{name}_low"], line[f"{name}_high"] = item or (None, None)
        elif field.name in OTHERS:
            line |= {OTHERS[field.name](metric): score for metric, score in (item or {}).items()}
        elif field.name not in ("runs", "scores", "latencies"):
            line[name] = LISTS[field.name](item or ()) if field.name in LISTS else item
    return line


RECORDS = {"control": Control, "plain": Control, "latency": Latency, "published": Published}
OTHERS = {"dense_others": names.dense, "sparse_others": names.sparse}
LISTS: dict[str, Callable] = {
    "seeds": lambda numbers: " ".join(map(str, numbers)),
    "differs": lambda differs: pairs(dict(differs)),
    "notes": "; ".join,
}


def as_json(rows: list[Row]) -> str:
    """A list of objects with the fields of `Row` but `scores`, in full precision (pandas has 15 digits); undefined ones
    are null."""
    records = [{name: value for name, value in asdict(row).items() if name != "scores"} for row in rows]
    return json.dumps(records, indent=2, allow_nan=False)


FORMATS: dict[str, Callable[[list[Row]], str]] = {
    "table": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "json": as_json,
    "latex": latex,
    "html": html,
}
FOR_PEOPLE = ("table", "markdown")  # footnotes follow the table; HTML has them in its page
FOR_PICTURES = ("png", "svg", "pdf")

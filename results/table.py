"""From rows to text: the published table for a terminal, as Markdown, LaTeX or HTML, and all figures as CSV or JSON."""

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from html import escape
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from results import columns as names
from results.collect import REASONS, REPEATED, Control, Published, Row

UNDEFINED = "-"
LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " ", "\r": " "}
LATEX |= {"[": "{[}", "]": "{]}", "*": "{*}"}  # at the start of a line they would belong to the \\ before it
_COMFORT = 24  # characters that a cell that may be broken gets, where there are so many


@dataclass(frozen=True)
class Column:
    """A column as people read it."""

    header: str
    cell: Callable[[Row], str]
    numeric: bool = False
    """Numbers are set flush right."""
    wraps: bool = False
    """Whether a narrow terminal may break its cells over lines."""
    label: bool = False
    """Whether it says which row this is: repeated where a table goes on in another block."""
    wide: bool = False
    """Whether a terminal's table leaves it out unless asked."""
    always: bool = False
    """Whether it stays where no row has a value."""


def layout(rows: list[Row], wide: bool = True) -> list[Column]:
    """The columns that these rows need: the published ones, then what makes them honest."""
    metrics = {row.metric for row in rows}
    score = "score" if len(metrics) != 1 else names.written(*metrics)
    metric = [Column("Metric", lambda row: names.title(row.metric), label=True)] if len(metrics) > 1 else []
    marked = marks(rows)
    columns = [
        Column("Model", lambda row: row.model, label=True),
        Column("Dataset", lambda row: row.dataset, label=True),
        Column("Sparsity pattern", lambda row: row.pattern, label=True),
        *metric,
        *ours(score),
        Column("Notes", lambda row: ", ".join(marked[note] for note in row.notes), wraps=True),
        *published(score),
        *against(f"Same-budget dense {score}", "control", lambda row: row.control),
        *against(f"Same-budget dense {score} without distillation", "undistilled control", lambda row: row.plain),
        *others(rows),
        *footprint(),
        Column("Differs", lambda row: pairs(row.differs), wraps=True),
    ]
    shown = (column for column in columns if wide or not column.wide)
    return [column for column in shown if column.label or column.always or has_values(column, rows)]


def ours(score: str) -> list[Column]:
    """The published columns, and the same of means."""
    return [
        Column("Element-wise/matmul, Gemm, conv ratio", lambda row: fraction(row.ratio), numeric=True, always=True),
        Column(
            f"Dense {score} (mean/max)",
            lambda row: mean_max(row.dense_mean, row.dense_max),
            numeric=True,
            always=True,
        ),
        Column(
            f"Sparse {score} (mean/max)",
            lambda row: mean_max(row.sparse_mean, row.sparse_max),
            numeric=True,
            always=True,
        ),
        Column("Relative drop", lambda row: percent(row.drop_max), numeric=True, always=True),
        Column("Relative drop of means", lambda row: percent(row.drop_mean), numeric=True, always=True),
        Column("95% interval of it", lambda row: between(row.drop_interval), numeric=True),
        Column("Seeds", lambda row: seeds(row.seeds), wraps=True, always=True),
    ]


def published(score: str) -> list[Column]:
    """What others reported for the same labels."""

    def column(header: str, cell: Callable[[Published], str]) -> Column:
        return Column(header, lambda row: cell(row.published) if row.published else UNDEFINED, numeric=True)

    return [
        column("Published ratio", lambda entry: fraction(entry.ratio)),
        column(f"Published dense {score} (mean/max)", lambda entry: mean_max(entry.dense_mean, entry.dense_max)),
        column(f"Published sparse {score} (mean/max)", lambda entry: mean_max(entry.sparse_mean, entry.sparse_max)),
        column("Published relative drop", lambda entry: percent(entry.drop)),
    ]


def against(header: str, name: str, of: Callable[[Row], Control | None]) -> list[Column]:
    """A dense rival, and the drop of the means against it."""

    def column(header: str, cell: Callable[[Control], str]) -> Column:
        def cell_of(row: Row) -> str:
            control = of(row)
            return UNDEFINED if control is None else cell(control)

        return Column(header, cell_of, numeric=True)

    return [
        column(f"{header} (mean/max)", lambda control: mean_max(control.mean, control.max)),
        column(f"Drop of means against {name}", lambda control: percent(control.drop_mean)),
        column(f"95% interval against {name}", lambda control: between(control.interval)),
    ]


def others(rows: list[Row]) -> list[Column]:
    """The sparse scores by metrics other than the main one. A row whose main one it is has it there too: the column is
    then whole in a table of several metrics."""

    def column(name: str) -> Column:
        def cell(row: Row) -> str:
            return fraction(row.sparse_mean if row.metric == name else row.sparse_others.get(name))

        return Column(f"Sparse {names.written(name)} (mean)", cell, numeric=True)

    return [column(name) for name in sorted({name for row in rows for name in row.sparse_others})]


def footprint() -> list[Column]:
    """What the sparse model weighs."""
    return [
        Column("Size on disk", lambda row: megabytes(row.size_bytes), numeric=True, wide=True),
        Column("Sparse, compressed", lambda row: megabytes(row.compressed_bytes), numeric=True, wide=True),
        Column(
            "Multiply-accumulates left", lambda row: share(row.macs_sparse, row.macs_dense), numeric=True, wide=True
        ),
    ]


def has_values(column: Column, rows: list[Row]) -> bool:
    """Whether any row has something to show there."""
    return any(column.cell(row) not in ("", UNDEFINED) for row in rows)


def fraction(value: float | None) -> str:
    """A score or sparsity with 4 decimals."""
    return UNDEFINED if value is None else f"{value:.4f}"


def mean_max(mean: float | None, maximum: float | None) -> str:
    """ "0.7662/0.7687", or one number where 4 decimals show no difference, as in the published table."""
    if mean is None:
        return fraction(maximum)
    return fraction(maximum) if fraction(mean) == fraction(maximum) else f"{fraction(mean)}/{fraction(maximum)}"


def percent(value: float | None) -> str:
    """A signed fraction as percent with 2 decimals: -0.0078 is "-0.78%"."""
    return UNDEFINED if value is None else f"{value:+z.2%}"


def between(interval: list[float] | None) -> str:
    """Low and high signed fractions as percent: "-1.20% to +0.03%"."""
    return UNDEFINED if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def megabytes(count: float | None) -> str:
    """Bytes in units of 10^6."""
    return UNDEFINED if count is None else f"{count / 1e6:.1f} MB"


def share(part: float | None, whole: float | None) -> str:
    """A part as percent of the whole, with 1 decimal."""
    return UNDEFINED if part is None or not whole else f"{part / whole:.1%}"


def seeds(numbers: list[int]) -> str:
    """How many, and which: "4 (0-2, 7)"."""
    if not numbers:
        return UNDEFINED
    # Numbers of one range have the same distance to their place in the list.
    ranges = ([number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0]))
    told = (f"{found[0]}-{found[-1]}" if len(found) > 1 else f"{found[0]}" for found in ranges)
    return f"{len(numbers)} ({', '.join(told)})"


def pairs(differs: Mapping[str, str]) -> str:
    """Params as "key=value, key=value"."""
    return ", ".join(f"{key}={value}" for key, value in differs.items())


def marks(rows: list[Row]) -> dict[str, str]:
    """Note -> its mark, a letter or several, in the order in which the notes come."""
    return {note: mark(at) for at, note in enumerate(dict.fromkeys(note for row in rows for note in row.notes))}


def mark(at: int) -> str:
    """0 is "a", 25 is "z", 26 is "aa"."""
    return (mark(at // 26 - 1) if at >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[at % 26]


def terminal(rows: list[Row], width: int | None = None, wide: bool = True) -> str:
    """A table for the eye. Numbers never break.

    Args:
        width: in characters. None sets every row on one line; else headers break over lines, and where that is not
            enough the table goes on in another block, below, that repeats the labels.
        wide: with the columns that are less important.
    """
    columns = layout(rows, wide)
    if width is None:
        return grid(rows, columns, None)
    labels = [column for column in columns if column.label]
    blocks: list[list[Column]] = [[]]
    for column in columns[len(labels) :]:
        if blocks[-1] and least(rows, [*labels, *blocks[-1], column]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(grid(rows, [*labels, *block], width) for block in blocks)


def grid(rows: list[Row], columns: list[Column], width: int | None) -> str:
    """One block of the table, wider than `width` where what must not break is."""
    console = plain_console()
    table = grid_of(rows, columns, folded=width is not None)
    if width is not None:
        console.width = max(width, Measurement.get(console, console.options, table).minimum)
    console.print(table)
    output = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.rstrip() for line in output.splitlines() if line.strip())


def least(rows: list[Row], columns: list[Column]) -> int:
    """The width below which a block becomes hard to read."""
    console = plain_console()
    return Measurement.get(console, console.options, grid_of(rows, columns, folded=True)).minimum


def plain_console() -> Console:
    """Writes into a string, as wide as it takes. A label such as "glob([a-z])" must not be read as markup."""
    return Console(file=io.StringIO(), width=10**6, markup=False, emoji=False, highlight=False)


def grid_of(rows: list[Row], columns: list[Column], folded: bool) -> Table:
    """The table for `rich`, its headers in lines of 12 characters if folded."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        header = textwrap.fill(column.header, 12, break_long_words=False) if folded else column.header
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


def column_width(column: Column, header: str, rows: list[Row]) -> int:
    """The characters that a column needs: `rich` by itself would break any cell between its words."""
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
    """The text as it is read once Markdown is rendered, on one line."""
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
        address: what the first cell of a row leads to.
    """

    def line(tag: str, cells: list[str]) -> str:
        kinds = [' class="number"' if column.numeric else "" for column in columns]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    def linked(cells: str, to: str | None) -> str:
        if to is None:
            return cells
        first, rest = cells.removeprefix("<td>").split("</td>", 1)
        return f'<td><a href="{escape(to)}">{first}</a></td>{rest}'

    columns = layout(rows)
    header = line("th", [column.header for column in columns])
    body = "".join(
        f"<tr>{linked(line('td', [column.cell(row) for column in columns]), address(row))}</tr>\n" for row in rows
    )
    return f"<table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


def html(rows: list[Row], notes: list[str] | None = None) -> str:
    """A page of its own: the table, and below it the notes (None: those of the rows)."""
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
    """All scalars in full precision, under a header line; what is undefined is an empty field."""
    lines = [flat(Row, row) for row in rows]
    header = dict.fromkeys(name for line in [flat(Row, None), *lines] for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(header), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def flat(kind: type, value: Row | Control | Published | None, prefix: str = "") -> dict[str, object]:
    """The fields of a record as columns of CSV, but for the run ids; those of records in it by "control_mean".

    Args:
        kind: the record's type.
        value: None gives the same names without values.
    """
    found: dict[str, object] = {}
    for field in fields(kind):
        name, item = prefix + field.name, getattr(value, field.name, None)
        if field.name in RECORDS:
            found |= flat(RECORDS[field.name], item, f"{name}_")
        elif field.name.endswith("interval"):
            found[f"{name}_low"], found[f"{name}_high"] = item or (None, None)
        elif field.name in OTHERS:
            found |= {OTHERS[field.name](metric): score for metric, score in (item or {}).items()}
        elif field.name != "runs":
            found[name] = LISTS[field.name](item or ()) if field.name in LISTS else item
    return found


RECORDS = {"control": Control, "plain": Control, "published": Published}
OTHERS = {"dense_others": names.dense, "sparse_others": names.sparse}
LISTS: dict[str, Callable] = {
    "seeds": lambda numbers: " ".join(map(str, numbers)),
    "differs": lambda differs: pairs(dict(differs)),
    "notes": "; ".join,
}


def as_json(rows: list[Row]) -> str:
    """A list of objects with the fields of `Row` in full precision; what is undefined is null."""
    return json.dumps([asdict(row) for row in rows], indent=2, allow_nan=False) if rows else "[]"


# `terminal` is the only one to which a width matters; left out, it sets one row a line.
FORMATS: dict[str, Callable[[list[Row]], str]] = {
    "table": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "json": as_json,
    "latex": latex,
    "html": html,
}
READ_BY_PEOPLE = ("table", "markdown")  # footnotes may follow the table itself; those of HTML are in its page


def footnotes(rows: list[Row], left_out: Mapping[str, int]) -> list[str]:
    """What the reader of these rows must know; `left_out` counts the runs not shown, as `collect.select` returns it."""
    notes = marked_notes(rows) if rows else ["Nothing to show: no pruned run is finished, verified and scored."]
    hidden = [f"{left_out[reason]} {reason}" for reason in REASONS if left_out.get(reason)]
    if hidden:
        are = "run is" if sum(left_out.get(reason, 0) for reason in REASONS) == 1 else "runs are"
        listed = f"{', '.join(hidden[:-1])} and {hidden[-1]}" if len(hidden) > 1 else hidden[0]
        notes.append(f"{listed} {are} not shown.")
    if count := left_out.get(REPEATED, 0):
        notes.append(f"{count} {'repeat was' if count == 1 else 'repeats were'} left out: the newest run counts.")
    twins = Counter((row.model, row.dataset, row.pattern, row.metric, pairs(row.differs)) for row in rows)
    notes += [
        f"{count} rows of {model} {dataset} {pattern} differ in something that was not logged as a param."
        for (model, dataset, pattern, *_), count in twins.items()
        if count > 1
    ]
    if sources := dict.fromkeys(row.published.source for row in rows if row.published):
        notes.append(
            f"Published by {'; '.join(sources)}. These are the publisher's numbers; how many seeds are behind them is "
            "not stated."
        )
    return notes


def marked_notes(rows: list[Row]) -> list[str]:
    """The notes of the rows under their marks, each with the rows that it concerns."""
    told = []
    for note, letter in marks(rows).items():
        noted = [row for row in rows if note in row.notes]
        listed = dict.fromkeys(f"{row.model} {row.dataset} {row.pattern}" for row in noted)
        concerned = "all rows" if len(noted) == len(rows) > 1 else ", ".join(listed)
        told.append(f"{letter}: {note} ({concerned}).")
    return told

"""From rows to text: the published table for a terminal, as Markdown or LaTeX, and all figures as CSV or JSON."""

import csv
import io
import json
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from results.collect import REASONS, REPEATED, Row

UNDEFINED = "-"
LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}", "\n": " "}


@dataclass(frozen=True)
class Column:
    """A column as people read it."""

    header: str
    cell: Callable[[Row], str]
    numeric: bool = False
    """Numbers are set flush right."""
    wraps: bool = False
    """Whether a narrow terminal may break its cells over lines."""


def layout(rows: list[Row]) -> list[Column]:
    """The columns that these rows need: the published ones, then what makes them honest."""
    metrics = {row.metric for row in rows}
    score = "score" if len(metrics) != 1 else metric_label(*metrics)
    metric = [Column("Metric", lambda row: metric_label(row.metric))] if len(metrics) > 1 else []
    differs = [Column("Differs", lambda row: pairs(row.differs), wraps=True)] if any(r.differs for r in rows) else []
    return [
        Column("Model", lambda row: row.model),
        Column("Dataset", lambda row: row.dataset),
        Column("Sparsity pattern", lambda row: row.pattern),
        *metric,
        Column("Element-wise/matmul, Gemm, conv ratio", lambda row: fraction(row.ratio), numeric=True),
        Column(f"Dense {score} (mean/max)", lambda row: mean_max(row.dense_mean, row.dense_max), numeric=True),
        Column(f"Sparse {score} (mean/max)", lambda row: mean_max(row.sparse_mean, row.sparse_max), numeric=True),
        Column("Relative drop", lambda row: percent(row.drop_max), numeric=True),
        Column("Relative drop of means", lambda row: percent(row.drop_mean), numeric=True),
        Column("Seeds", lambda row: ", ".join(map(str, row.seeds)), wraps=True),
        *differs,
    ]


def metric_label(metric: str) -> str:
    """The metric as people write it: "exact_match" is "Exact match"."""
    return metric[:1].upper() + metric[1:].replace("_", " ")


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


def pairs(differs: Mapping[str, str]) -> str:
    """Params as "key=value, key=value"."""
    return ", ".join(f"{key}={value}" for key, value in differs.items())


def terminal(rows: list[Row], width: int | None = None) -> str:
    """A table for the eye. `width` in characters: None sets every row on one line; in a terminal the headers break
    over lines, and the longest cells where that is not enough. Numbers never break."""
    # Plain text: a label such as "glob([a-z])" must not be read as markup.
    console = Console(file=io.StringIO(), width=10**6, markup=False, emoji=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = layout(rows)
    for column in columns:
        header = column.header if width is None else textwrap.fill(column.header, 12, break_long_words=False)
        justify = "right" if column.numeric else "left"
        table.add_column(header, justify=justify, no_wrap=not column.wraps, overflow="fold")
    for row in rows:
        table.add_row(*(column.cell(row) for column in columns))
    if width is not None:
        console.width = max(width, Measurement.get(console, console.options, table).minimum)
    console.print(table)
    output = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    return "\n".join(line.rstrip() for line in output.splitlines() if line.strip())


def markdown(rows: list[Row]) -> str:
    """A table of GitHub's Markdown."""
    columns = layout(rows)
    lines = [
        [column.header for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([re.sub(r"([\\|*`<])", r"\\\1", column.cell(row)).replace("\n", " ") for column in columns] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(rows: list[Row]) -> str:
    """A tabular of LaTeX's booktabs package."""
    columns = layout(rows)

    cells = [[column.header for column in columns], *([column.cell(row) for column in columns] for row in rows)]
    header, *body = (" & ".join(cell.translate(str.maketrans(LATEX)) for cell in line) + r" \\" for line in cells)
    alignment = "".join("r" if column.numeric else "l" for column in columns)
    opening = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    return "\n".join([*opening, header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def comma_separated(rows: list[Row]) -> str:
    """All scalars in full precision, under a header line; what is undefined is an empty field."""
    names = [name for name in Row.__dataclass_fields__ if name != "runs"]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row) | {"seeds": " ".join(map(str, row.seeds)), "differs": pairs(row.differs)})
    return text.getvalue().rstrip("\n")


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
}
READ_BY_PEOPLE = ("table", "markdown")  # footnotes may follow the table itself


def footnotes(rows: list[Row], left_out: Mapping[str, int]) -> list[str]:
    """What the reader of these rows must know; `left_out` counts the runs not shown, as `collect.select` returns it."""
    notes = [] if rows else ["Nothing to show: no pruned run is finished, verified and scored."]
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
    return notes

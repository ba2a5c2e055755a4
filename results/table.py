"""The table of results: its columns, cells and footnotes. `results.formats` prints it."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from results import columns as names
from results.controls import Control
from results.rows import Published, Row
from results.runs import REASONS, REPEATED

UNDEFINED = "-"


@dataclass(frozen=True)
class Column:
    """A column of the table for people."""

    header: str
    cell: Callable[[Row], str]
    numeric: bool = False
    """Numbers are right-aligned."""
    wraps: bool = False
    """True if a narrow terminal may wrap the cells."""
    label: bool = False
    """True if it identifies the row: repeated in each block of a table that is split."""
    wide: bool = False
    """True if a terminal shows it with --wide only."""
    always: bool = False
    """True if it is shown even if no row has a value."""


def layout(rows: list[Row], wide: bool = True) -> list[Column]:
    """The columns that these rows need: those of the published table first."""
    metrics = {row.metric for row in rows}
    score = "score" if len(metrics) != 1 else names.written(*metrics)
    metric = [Column("Metric", lambda row: names.title(row.metric), label=True)] if len(metrics) > 1 else []
    layers = [Column("Layers", lambda row: (row.student_layers or "all").partition(" layers")[0], label=True)]
    fewer = layers if any(row.student_layers for row in rows) else []
    marked = marks(rows)
    columns = [
        Column("Model", lambda row: row.model, label=True),
        Column("Dataset", lambda row: row.dataset, label=True),
        Column("Sparsity pattern", lambda row: row.pattern, label=True),
        *fewer,
        *metric,
        *scores(score),
        Column("Notes", lambda row: ", ".join(marked[note] for note in row.notes), wraps=True),
        *published(score),
        *control(f"Same-budget dense {score}", "control", lambda row: row.control),
        *control(f"Same-budget dense {score} without distillation", "undistilled control", lambda row: row.plain),
        *others(rows),
        *latency(),
        *footprint(),
        Column("Differs", lambda row: pairs(row.differs), wraps=True),
    ]
    shown = (column for column in columns if wide or not column.wide)
    return [column for column in shown if column.label or column.always or has_values(column, rows)]


def scores(score: str) -> list[Column]:
    """The columns of the published table, and the drop of means with its interval."""
    always = partial(Column, numeric=True, always=True)
    return [
        always("Element-wise/matmul, Gemm, conv ratio", lambda row: fraction(row.ratio)),
        always(f"Dense {score} (mean/max)", lambda row: mean_max(row.dense_mean, row.dense_max)),
        always(f"Sparse {score} (mean/max)", lambda row: mean_max(row.sparse_mean, row.sparse_max)),
        always("Relative drop", lambda row: percent(row.drop_max)),
        always("Relative drop of means", lambda row: percent(row.drop_mean)),
        Column("95% interval of the drop of means", lambda row: between(row.drop_interval), numeric=True),
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


def control(header: str, name: str, read: Callable[[Row], Control | None]) -> list[Column]:
    """The scores of a control, and the drop of the means against it."""

    def column(header: str, cell: Callable[[Control], str]) -> Column:
        return Column(header, lambda row: cell(entry) if (entry := read(row)) else UNDEFINED, numeric=True)

    return [
        column(f"{header} (mean/max)", lambda control: mean_max(control.mean, control.max)),
        column(f"Drop of means against {name}", lambda control: percent(control.drop_mean)),
        column(f"95% interval against {name}", lambda control: between(control.interval)),
    ]


def others(rows: list[Row]) -> list[Column]:
    """Sparse scores by metrics other than the main one. In a table of several main metrics such a column also shows the
    main scores by that metric."""

    def column(name: str) -> Column:
        def cell(row: Row) -> str:
            return fraction(row.sparse_mean if row.metric == name else row.sparse_others.get(name))

        return Column(f"Sparse {names.written(name)} (mean)", cell, numeric=True)

    return [column(name) for name in sorted({name for row in rows for name in row.sparse_others})]


def latency() -> list[Column]:
    """Time of the sparse runtime and its ratio to the best dense one; empty in rows that were not timed. The notes name
    CPU and setting."""
    number = partial(Column, numeric=True)
    return [
        number("Latency ms", lambda row: f"{row.latency.ms:.2f}" if row.latency else ""),
        number("Faster than best dense", lambda row: times(row.latency.ratio_to_best_dense if row.latency else None)),
    ]


def footprint() -> list[Column]:
    """Sizes and multiply-accumulates of the sparse model."""
    wide = partial(Column, numeric=True, wide=True)
    return [
        wide("Size on disk", lambda row: megabytes(row.size_bytes)),
        wide("Sparse, compressed", lambda row: megabytes(row.compressed_bytes)),
        wide("Parameters left", lambda row: share(row.parameters, row.parameters_dense)),
        wide("Multiply-accumulates left", lambda row: share(row.macs_sparse, row.macs_dense)),
    ]


def has_values(column: Column, rows: list[Row]) -> bool:
    """True if any row has a value in the column."""
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


def times(ratio: float | None) -> str:
    """A ratio such as "2.61x"; empty where there is none."""
    return "" if ratio is None else f"{ratio:.2f}x"


def seeds(numbers: list[int]) -> str:
    """Their number and a list: "4 (0-2, 7)"."""
    if not numbers:
        return UNDEFINED
    # Consecutive numbers have a constant difference to their index.
    ranges = ([number for _, number in run] for _, run in groupby(enumerate(numbers), lambda at: at[1] - at[0]))
    listed = (f"{each[0]}-{each[-1]}" if len(each) > 1 else f"{each[0]}" for each in ranges)
    return f"{len(numbers)} ({', '.join(listed)})"


def pairs(differs: Mapping[str, str]) -> str:
    """Params as "key=value, key=value"."""
    return ", ".join(f"{key}={value}" for key, value in differs.items())


def marks(rows: list[Row]) -> dict[str, str]:
    """Note -> its mark, one letter or more, in the order in which the notes appear."""
    return {note: mark(at) for at, note in enumerate(dict.fromkeys(note for row in rows for note in row.notes))}


def mark(at: int) -> str:
    """0 is "a", 25 is "z", 26 is "aa"."""
    return (mark(at // 26 - 1) if at >= 26 else "") + "abcdefghijklmnopqrstuvwxyz"[at % 26]


def footnotes(rows: list[Row], left_out: Mapping[str, int]) -> list[str]:
    """What the reader of these rows must know; `left_out` counts the runs not shown, as `runs.select` returns it."""
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
    """The notes by their marks, each with the rows that it concerns."""
    lines = []
    for note, letter in marks(rows).items():
        noted = [row for row in rows if note in row.notes]
        listed = dict.fromkeys(f"{row.model} {row.dataset} {row.pattern}" for row in noted)
        concerned = "all rows" if len(noted) == len(rows) > 1 else ", ".join(listed)
        lines.append(f"{letter}: {note} ({concerned}).")
    return lines

"""The table of results: its columns, cells and footnotes. `results.formats` prints it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from results import columns as names
from results.cells import (
    UNDEFINED,
    between,
    fraction,
    mean_max,
    megabytes,
    pairs,
    percent,
    seeds,
    share,
    times,
    with_interval,
)
from results.controls import Control
from results.rows import Published, Row
from results.runs import REASONS, REPEATED

TARGET_SPARSITY = "pattern.target_sparsity"  # a param


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
    stacks: bool = False
    """True if a narrow terminal may set the brackets of its cells on a line of their own."""
    always: bool = False
    """True if it is shown even if no row has a value."""


def layout(rows: list[Row], wide: bool = True) -> list[Column]:
    """The columns that these rows need.

    Args:
        wide: every figure, those of the published table first; else what a row costs, in about 120 characters.
    """
    metrics = {row.metric for row in rows}
    score = "score" if len(metrics) != 1 else names.written(*metrics)
    metric = [Column("Metric", lambda row: names.title(row.metric), label=True)] if len(metrics) > 1 else []
    columns = full(rows, score, metric) if wide else compact(rows, score, metric)
    return [column for column in columns if column.label or column.always or has_values(column, rows)]


def compact(rows: list[Row], score: str, metric: list[Column]) -> list[Column]:
    """What a row costs, and what speaks against it."""
    number = partial(Column, numeric=True)
    always = partial(number, always=True)
    compared = any(row.published for row in rows)
    shown = mean_max if compared else lambda mean, maximum: fraction(mean)
    return [
        Column("Model", lambda row: row.model, label=True),
        Column("Dataset", lambda row: row.dataset, label=True),
        Column("Pattern", lambda row: row.pattern, label=True),
        *fewer_layers(rows),
        *metric,
        always("Zeros", lambda row: share(row.ratio, 1)),
        always(f"Dense {score}", lambda row: shown(row.dense_mean, row.dense_max)),
        always(f"Sparse {score}", lambda row: shown(row.sparse_mean, row.sparse_max)),
        always("Drop of means [95%]", lambda row: with_interval(row.drop_mean, row.drop_interval), stacks=True),
        number("Against control [95%]", lambda row: against_control(row.control), stacks=True),
        *([number("Drop of maxima", lambda row: percent(row.drop_max))] if compared else []),
        *published(score),
        always("Seeds", lambda row: str(len(row.seeds)) if row.seeds else UNDEFINED),
        number("Latency ms", latency_and_ratio),
        Column("Notes", note_marks(rows), wraps=True),
        Column("Differs", differences(rows), wraps=True),
    ]


def full(rows: list[Row], score: str, metric: list[Column]) -> list[Column]:
    """Every figure of the rows."""
    return [
        Column("Model", lambda row: row.model, label=True),
        Column("Dataset", lambda row: row.dataset, label=True),
        Column("Sparsity pattern", lambda row: row.pattern, label=True),
        *fewer_layers(rows),
        *metric,
        *scores(score),
        Column("Notes", note_marks(rows), wraps=True),
        *published(score),
        *control(f"Same-budget dense {score}", "control", lambda row: row.control),
        *control(f"Same-budget dense {score} without distillation", "undistilled control", lambda row: row.plain),
        *others(rows),
        *latency(),
        *footprint(),
        Column("Differs", lambda row: pairs(row.differs), wraps=True),
    ]


def fewer_layers(rows: list[Row]) -> list[Column]:
    """How many layers are left, if a row has fewer than its dense model."""
    column = Column("Layers", lambda row: (row.student_layers or "all").partition(" layers")[0], label=True)
    return [column] if any(row.student_layers for row in rows) else []


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
        column("Drop less published", lambda entry: percent(entry.difference)),
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
    number = partial(Column, numeric=True)
    return [
        number("Size on disk", lambda row: megabytes(row.size_bytes)),
        number("Sparse, compressed", lambda row: megabytes(row.compressed_bytes)),
        number("Parameters left", lambda row: share(row.parameters, row.parameters_dense)),
        number("Multiply-accumulates left", lambda row: share(row.macs_sparse, row.macs_dense)),
        number("Size once cut", lambda row: megabytes(row.bytes_cut)),
        number("Parameters once cut", lambda row: share(row.parameters_cut, row.parameters_dense)),
        number("Multiply-accumulates once cut", lambda row: share(row.macs_cut, row.macs_dense)),
    ]


def has_values(column: Column, rows: list[Row]) -> bool:
    """True if any row has a value in the column."""
    return any(column.cell(row) not in ("", UNDEFINED) for row in rows)


def against_control(control: Control | None) -> str:
    """The drop of the means against a control, with its interval."""
    return UNDEFINED if control is None else with_interval(control.drop_mean, control.interval)


def latency_and_ratio(row: Row) -> str:
    """ "4.00 (2.50x)": milliseconds, and how many times faster than the best dense runtime."""
    if row.latency is None:
        return ""
    ratio = times(row.latency.ratio_to_best_dense)
    return f"{row.latency.ms:.2f} ({ratio})" if ratio else f"{row.latency.ms:.2f}"


def differences(rows: Sequence[Row]) -> Callable[[Row], str]:
    """The cell of what distinguishes a row, without the target sparsity where the zeros distinguish as well."""
    zeros: defaultdict[tuple[str, ...], dict[str | None, str]] = defaultdict(dict)
    for row in filter(lambda row: row.runs, rows):
        zeros[_labels(row)][row.differs.get(TARGET_SPARSITY)] = share(row.ratio, 1)

    def cell(row: Row) -> str:
        by_target = zeros[_labels(row)]
        shown = len(set(by_target.values())) == len(by_target)
        return pairs({key: value for key, value in row.differs.items() if key != TARGET_SPARSITY or not shown})

    return cell


def _labels(row: Row) -> tuple[str, ...]:
    return row.model, row.dataset, row.pattern, row.metric


def marks(rows: list[Row]) -> dict[str, str]:
    """Note -> its mark, one letter or more, in the order in which the notes appear."""
    return {note: mark(at) for at, note in enumerate(dict.fromkeys(note for row in rows for note in row.notes))}


def note_marks(rows: list[Row]) -> Callable[[Row], str]:
    """The cell that lists the marks of a row's notes."""
    marked = marks(rows)
    return lambda row: ", ".join(marked[note] for note in row.notes)


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

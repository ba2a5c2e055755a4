"""The picture of score against sparsity: mean scores of patterns with their intervals, dense models and controls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from results import columns
from results.cells import pairs
from results.figures import CONTROLS, DENSE_COLOUR, STYLE, Mark, legend, marks_of
from results.rows import Row
from results.runs import natural
from results.table import TARGET_SPARSITY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparisons(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of one picture, by model, `Row.scored_on` and metric. Without a pruned row there is no picture."""
    groups: defaultdict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.runs:
            groups[row.model, row.scored_on, row.metric].append(row)
    ordered = sorted(groups, key=lambda key: [natural(part) for part in key])
    return {key: groups[key] for key in ordered if any(not row.is_control for row in groups[key])}


def score_against_sparsity(rows: Sequence[Row]) -> Figure:
    """Mean score over seeds against the ratio of zeros, a line for each pattern, of the rows of one comparison.

    Bars are the table's 95 % interval of the drop of means, applied to the row's dense mean; dotted, where there is no
    interval, the range over seeds. Horizontal lines are the dense models and the same-budget controls.
    """
    pruned = [row for row in rows if not row.is_control and row.ratio is not None]
    with mpl.rc_context({**STYLE, "font.size": 10}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        level(axes, dense_scores(rows), "dense", DENSE_COLOUR, "-")
        for (label, scores), (colour, line) in zip(_controls(rows), cycle(CONTROLS), strict=False):
            level(axes, scores, label, colour, line)
        lines = series(pruned)
        marks = marks_of({label: joined[0].pattern for label, joined in lines.items()})
        for label, joined in lines.items():
            points(axes, [row.ratio or 0.0 for row in joined], joined, label, marks[label])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel("zeros, % of all Linear and Conv weights")
        axes.set_ylabel(score_label(rows))
        axes.set_title(f"{rows[0].model} on {rows[0].scored_on}, {seed_counts(rows)}", fontsize=11)
        caption = f"{legend_of_bars(pruned)}\n{legend_of_seeds(rows)}".strip()
        legend(figure, axes.get_legend_handles_labels()[0], caption)
    return figure


def dense_scores(rows: Iterable[Row]) -> list[float]:
    """The scores of the dense models, each once: rows may share them."""
    dense = {(seed, score) for row in rows for seed, (score, _) in zip(row.seeds, row.scores, strict=True)}
    return [score for _, score in sorted(dense)]


def _controls(rows: Sequence[Row]) -> list[tuple[str, list[float]]]:
    """Label and scores of each same-budget control: by seed where it is a row itself, else its mean."""
    label = "dense, same budget"
    named = [(row.plain, f"{label}, no distillation") for row in rows] + [(row.control, label) for row in rows]
    levels: dict[tuple[str, ...], tuple[str, list[float]]] = {}
    for control, name in named:
        if control is not None:
            levels.setdefault(tuple(control.runs), (name, [control.mean]))
    for row in rows:
        if row.is_control:
            name, _ = levels.get(tuple(row.runs), (_with_params(label, row.differs), []))
            levels[tuple(row.runs)] = name, [sparse for _, sparse in row.scores]
    return sorted(levels.values())


def series(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows that a line joins, by label: those of a pattern that differ in their target sparsity only."""
    joined: defaultdict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.ratio or 0):
        differs = {key: value for key, value in row.differs.items() if key != TARGET_SPARSITY}
        joined[_with_params(row.pattern, differs)].append(row)
    return dict(sorted(joined.items(), key=lambda item: natural(item[0])))


def _with_params(label: str, differs: Mapping[str, str]) -> str:
    return f"{label} ({pairs(differs)})" if differs else label


def seed_counts(rows: Sequence[Row]) -> str:
    """How many seeds rows have: "3 seeds", "1 to 3 seeds"."""
    counts = sorted({len(row.seeds) for row in rows})
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} seed{'' if counts[-1] == 1 else 's'}"


def score_label(rows: Sequence[Row]) -> str:
    """The label of an axis with scores: "F1, mean over seeds (fraction)"."""
    unit = "" if rows[0].metric in columns.CORRELATIONS else " (fraction)"
    mean = ", mean over seeds" if any(len(row.seeds) > 1 for row in rows) else ""
    return f"{columns.title(rows[0].metric)}{mean}{unit}"


def legend_of_bars(rows: Sequence[Row]) -> str:
    """What the bars of these rows are."""
    intervals = [row.drop_interval is not None for row in rows]
    several = [len(row.seeds) > 1 for row in rows]
    over = (
        "examples and seeds" if all(several) else "examples" if not any(several) else "examples, and seeds if several"
    )
    lines = [f"bars: 95% interval of the drop from dense, over {over}"] if any(intervals) else []
    if not all(intervals):
        lines += ["dotted bars: range over seeds (no interval)" if any(several) else "no intervals"]
    return "\n".join(lines)


def legend_of_seeds(rows: Sequence[Row]) -> str:
    """What small markers and shades are; empty if each of these rows has one seed."""
    return "small markers: single seeds; shaded: range over seeds" if any(len(row.seeds) > 1 for row in rows) else ""


def level(axes: Axes, scores: Sequence[float], label: str, colour: str, line: str) -> None:
    """A horizontal line at the mean of scores, with their range as a shade."""
    axes.axhline(fmean(scores), color=colour, linestyle=line, linewidth=1.4, label=label)
    if max(scores) > min(scores):
        axes.axhspan(min(scores), max(scores), color=colour, alpha=0.08, linewidth=0)


def points(axes: Axes, x: Sequence[float], rows: Sequence[Row], label: str, mark: Mark) -> None:
    """A line through the mean scores of rows at these places, with their bars and their single seeds."""
    scores = [[sparse for _, sparse in row.scores] for row in rows]
    axes.plot(x, list(map(fmean, scores)), color=mark.colour, marker=mark.marker, linestyle=mark.line, markersize=6,
              linewidth=1.2, label=label)  # fmt: skip
    draw_bars(axes, x, rows, mark.colour)
    for at, by_seed in zip(x, scores, strict=True):
        if len(by_seed) > 1:
            axes.plot([at] * len(by_seed), by_seed, color=mark.colour, marker=mark.marker, markersize=3,
                      linestyle="none", alpha=0.5)  # fmt: skip


def draw_bars(axes: Axes, x: Sequence[float], rows: Sequence[Row], colour: str) -> None:
    """The bars of rows at these places: solid for intervals, dotted for ranges over seeds."""
    ends = [bounds(row) for row in rows]
    # Around the middle of the bounds: a percentile interval need not contain the mean.
    _, _, (bars,) = axes.errorbar(x, [(low + high) / 2 for low, high in ends], color=colour, capsize=4, fmt="none",
                                  yerr=[(high - low) / 2 for low, high in ends])  # fmt: skip
    bars.set_linestyle(["-" if row.drop_interval else ":" for row in rows])


def bounds(row: Row) -> tuple[float, float]:
    """Low and high end of a row's bar, as scores. A drop of few examples may reach beyond the best score there is."""
    if row.drop_interval is not None and row.dense_mean is not None:
        least = -1.0 if row.metric in columns.CORRELATIONS else 0.0
        low, high = (row.dense_mean * (1 + drop) for drop in row.drop_interval)
        return max(low, least), min(high, 1.0)
    sparse = [score for _, score in row.scores]
    return min(sparse), max(sparse)

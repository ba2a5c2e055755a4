"""The picture of score against sparsity: mean scores of patterns with their intervals, dense models and controls."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from results import columns
from results.figures import COLOURS, MARKERS, STYLE
from results.rows import Row
from results.runs import natural
from results.table import pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET_SPARSITY = "pattern.target_sparsity"  # a param
CONTROL_STYLES = (("#882255", "--"), ("#7A5C00", "-."), ("#555555", ":"))  # colour and line
_LEGEND = 21  # characters of a line


def comparisons(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of one picture, by model, dataset and metric. Without a pruned row there is no picture."""
    groups: defaultdict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.runs:
            groups[row.model, row.dataset, row.metric].append(row)
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
        _level(axes, dense_scores(rows), "dense", "#000000", "-")
        for (label, scores), (colour, line) in zip(_controls(rows), cycle(CONTROL_STYLES), strict=False):
            _level(axes, scores, label, colour, line)
        for (label, joined), colour, marker in zip(series(pruned).items(), cycle(COLOURS), cycle(MARKERS),
                                                   strict=False):  # fmt: skip
            _points(axes, joined, label, colour, marker)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel("zeros, % of all Linear and Conv weights")
        unit = "" if rows[0].metric in columns.CORRELATIONS else " (fraction)"
        axes.set_ylabel(f"{columns.title(rows[0].metric)}, mean over seeds{unit}")
        axes.set_title(f"{rows[0].model} on {rows[0].dataset}, {seed_counts(rows)}", fontsize=11)
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
        figure.supxlabel(_legend_of_bars(pruned), fontsize=8, color="#444444")
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


def _legend_of_bars(rows: Sequence[Row]) -> str:
    intervals = [row.drop_interval is not None for row in rows]
    lines = ["bars: 95% interval of the drop from dense, over examples and seeds"] if any(intervals) else []
    lines += [] if all(intervals) else ["dotted bars: range over seeds (no interval)"]
    return "\n".join([*lines, "small markers: single seeds; shaded: range over seeds"])


def _level(axes: Axes, scores: Sequence[float], label: str, colour: str, line: str) -> None:
    axes.axhline(fmean(scores), color=colour, linestyle=line, linewidth=1.4, label=textwrap.fill(label, _LEGEND))
    if max(scores) > min(scores):
        axes.axhspan(min(scores), max(scores), color=colour, alpha=0.08, linewidth=0)


def _points(axes: Axes, rows: Sequence[Row], label: str, colour: str, marker: str) -> None:
    x = [row.ratio or 0.0 for row in rows]
    scores = [[sparse for _, sparse in row.scores] for row in rows]
    axes.plot(x, list(map(fmean, scores)), color=colour, marker=marker, markersize=6, linewidth=1.2,
              label=textwrap.fill(label, _LEGEND))  # fmt: skip
    bounds = [_bounds(row) for row in rows]
    # Around the middle of the bounds: a percentile interval need not contain the mean.
    _, _, (bars,) = axes.errorbar(x, [(low + high) / 2 for low, high in bounds], color=colour, capsize=4, fmt="none",
                                  yerr=[(high - low) / 2 for low, high in bounds])  # fmt: skip
    bars.set_linestyle(["-" if row.drop_interval else ":" for row in rows])
    for at, by_seed in zip(x, scores, strict=True):
        axes.plot([at] * len(by_seed), by_seed, color=colour, marker=marker, markersize=3, linestyle="none", alpha=0.5)


def _bounds(row: Row) -> tuple[float, float]:
    """Low and high end of a row's bar, as scores."""
    if row.drop_interval is not None and row.dense_mean is not None:
        low, high = row.drop_interval
        return row.dense_mean * (1 + low), row.dense_mean * (1 + high)
    sparse = [score for _, score in row.scores]
    return min(sparse), max(sparse)

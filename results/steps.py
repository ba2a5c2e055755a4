"""The picture of score against training: what a part of the optimizer steps gives, a line for each recipe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from results.cells import pairs
from results.figures import COLOURS, CONTROLS, DENSE_COLOUR, STYLE, legend, mark_at
from results.rows import Row
from results.runs import natural
from results.table import TARGET_SPARSITY
from results.tradeoff import comparisons, dense_scores, legend_of_bars, level, points, score_label, seed_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENGTHS = ("train.num_train_epochs", "train.max_steps")
"""Params that say how long a run trains: runs of one line differ in nothing else."""
RECIPE = ("criterion", "schedule")
"""Params that name a line; what else differs is added in brackets."""
_TRAINING = ("train.", "distill", "schedule.", "model.hidden_dropout", "model.attention_dropout")
"""Beginnings of the keys that only count where something is trained."""

Panel = tuple[str, float]
"""Pattern and ratio of zeros, in percent."""


def trained(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of one picture, by model, dataset and metric. There is none unless two pruned rows differ in their
    number of optimizer steps and in nothing else."""
    groups = comparisons(row for row in rows if row.steps is not None)
    return {key: group for key, group in groups.items() if panels(group)}


def panels(rows: Sequence[Row]) -> dict[Panel, dict[str, list[Row]]]:
    """The lines of each pattern and sparsity that has a line of several lengths: label -> rows, the shortest first."""
    alike: defaultdict[Panel, list[Row]] = defaultdict(list)
    for row in rows:
        if not row.is_control and row.steps is not None:
            alike[row.pattern, round(100 * (row.ratio or 0))].append(row)
    drawn = {panel: _lines(group) for panel, group in sorted(alike.items(), key=lambda each: natural(str(each[0])))}
    return {panel: lines for panel, lines in drawn.items() if any(_lengths(line) > 1 for line in lines.values())}


def score_against_steps(rows: Sequence[Row]) -> Figure:
    """Mean score over seeds against the share of the optimizer steps of the longest run, a line for each recipe, of the
    rows of one comparison; a panel for each pattern and sparsity. Bars are as in the picture of score against sparsity.
    """
    drawn = panels(rows)
    labels = sorted({label for lines in drawn.values() for label in lines}, key=natural)
    marks = {
        label: mark_at(at, 0, at // len(COLOURS)) for at, label in enumerate(labels)
    }  # one recipe has one mark in all panels
    shown = [row for lines in drawn.values() for line in lines.values() for row in line]
    longest = max(row.steps or 0 for row in shown)
    wide = min(2, len(drawn))
    deep = -(-len(drawn) // wide)
    with mpl.rc_context({**STYLE, "font.size": 10}):
        figure = Figure(figsize=(4.6 * wide + 2.4, 3.4 * deep + 0.9), layout="constrained")
        grid = list(figure.subplots(deep, wide, sharex=True, sharey=True, squeeze=False).flat)
        for axes, ((pattern, percent), lines) in zip(grid, drawn.items(), strict=False):
            level(axes, dense_scores(rows), "dense", DENSE_COLOUR, "-")
            _draw_controls(axes, [row for line in lines.values() for row in line], longest)
            for label, line in lines.items():
                points(axes, [_share(row, longest) for row in line], line, label, marks[label])
            axes.set_title(f"{pattern}, {percent:g}% zeros", fontsize=10)
            axes.set_ylabel(score_label(shown), fontsize=9)
            axes.label_outer()
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        for axes in grid[len(drawn) :]:
            axes.remove()
        handles = [line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]]
        figure.suptitle(f"{rows[0].model} on {rows[0].scored_on}, {seed_counts(shown)}", fontsize=11)
        legend(figure, handles, f"optimizer steps, 100% is {longest:,.0f}\n{legend_of_bars(shown)}")
    return figure


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that differ in the length of the training only, by the label of their line."""
    joined: defaultdict[tuple[tuple[str, str], ...], list[Row]] = defaultdict(list)
    for row in rows:
        joined[tuple((k, v) for k, v in row.differs.items() if k not in (*LENGTHS, TARGET_SPARSITY))].append(row)
    untrained = {key: joined.pop(key) for key in list(joined) if not any(row.steps for row in joined[key])}
    for key, start in untrained.items():
        ends = [line for other, line in joined.items() if _without_training(other) == _without_training(key)]
        for line in ends:
            line.extend(start)
        if not ends:
            joined[key] = start
    named: defaultdict[str, list[tuple[dict[str, str], list[Row]]]] = defaultdict(list)
    for differs, line in joined.items():
        named[_recipe(dict(differs))].append((dict(differs), sorted(line, key=lambda row: row.steps or 0)))
    lines = {}
    for recipe, alike in named.items():
        for differs, line in alike:
            rest = {k: v for k, v in differs.items() if any(other.get(k) != v for other, _ in alike)}
            lines[f"{recipe} ({pairs(rest)})" if rest else recipe] = line
    return lines


def _without_training(differs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """What matters without an optimizer step, where all lines of a training that begin alike have their start."""
    return {(key, value) for key, value in differs if not key.startswith(_TRAINING)}


def _recipe(differs: Mapping[str, str]) -> str:
    return ", ".join(differs[key] for key in RECIPE if key in differs) or "all"


def _lengths(rows: Iterable[Row]) -> int:
    return len({row.steps for row in rows})


def _share(row: Row, longest: float) -> float:
    return (row.steps or 0) / longest


def _draw_controls(axes: Axes, rows: Iterable[Row], longest: float) -> None:
    """The dense models that were trained as long, where they were."""
    means: defaultdict[float, list[float]] = defaultdict(list)
    for row in rows:
        if row.control is not None:
            means[_share(row, longest)].append(row.control.mean)
    if means:
        colour, line = CONTROLS[0]
        x = sorted(means)
        axes.plot(x, [fmean(means[share]) for share in x], color=colour, linestyle=line, linewidth=1.4,
                  marker="." if len(x) < 3 else None, label="dense, same budget")  # fmt: skip

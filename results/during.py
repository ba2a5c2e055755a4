"""The picture of score against sparsity during one run: its scores on a hold-out after each mask update or epoch."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from results import columns
from results.figures import SEQUENTIAL, STYLE, titled

Points = Sequence[tuple[int, float, float]]
"""(step, sparsity, score), in the order of the steps."""


def joined(scores: Sequence[tuple[int, float]], sparsities: Sequence[tuple[int, float]]) -> Points:
    """The scores with the sparsity of their steps."""
    at = dict(sparsities)
    return [(step, at[step], score) for step, score in scores if step in at]


def score_during(points: Points, metric: str, about: str | None = None) -> Figure:
    """Score on the hold-out against the sparsity of its moment, a line through the steps, whose colours are the steps.
    Points above each other have one sparsity: what training gained after an update.

    Args:
        about: the run, for the title.
    """
    steps, sparsities, scores = zip(*points, strict=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(sparsities, scores, color="#999999", linewidth=1)
        marks = axes.scatter(sparsities, scores, c=steps, cmap=SEQUENTIAL, zorder=3)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.06, y=0.1)
        axes.set_xlabel("sparsity of the pruned layers")
        axes.set_ylabel(f"{columns.written(metric)} on the hold-out")
        axes.set_title(titled(about, "Score while it is pruned"), fontsize=10)
        figure.colorbar(marks, ax=axes, label="optimizer step")
    return figure

"""The picture of `python -m runner.tradeoff`: score against speed of models that are pruned in one shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from results.figures import CAPTION, DENSE_COLOUR, STYLE, marks_of, rendered, titled


def score_against_speed(
    lines: Mapping[str, Sequence[tuple[float, float, float]]], dense: float, about: str, metric: str
) -> Figure:
    """A line for each pattern, each point with its zeros in percent.

    Args:
        lines: pattern -> times as fast as the best dense runtime, score and sparsity of each point.
        dense: score of the dense model.
        about: model and dataset.
        metric: name of the score.
    """
    marks = marks_of({pattern: pattern for pattern in lines})
    with mpl.rc_context({**STYLE, "font.size": 10, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.axhline(dense, color=DENSE_COLOUR, linewidth=1.2)
        axes.plot([1], [dense], color=DENSE_COLOUR, marker="*", markersize=11, linestyle="none", label="dense")
        for pattern, points in lines.items():
            mark, faster = marks[pattern], [speed for speed, *_ in points]
            axes.plot(faster, [score for _, score, _ in points], color=mark.colour, marker=mark.marker,
                      linestyle=mark.line, markersize=6, linewidth=1.2, label=pattern)  # fmt: skip
            for speed, score, zeros in points:
                axes.annotate(f"{100 * zeros:.4g}%", (speed, score), xytext=(4, 5), textcoords="offset points",
                              fontsize=8, color=CAPTION)  # fmt: skip
        axes.margins(x=0.12, y=0.12)
        axes.xaxis.set_major_formatter("{x:g}x")
        axes.set_xlabel("times as fast as the dense model in its fastest runtime")
        axes.set_ylabel(metric)
        axes.set_title(titled(about, "Pruned in one shot, nothing trained"), fontsize=11)
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def picture(
    lines: Mapping[str, Sequence[tuple[float, float, float]]], dense: float, about: str, metric: str, form: str
) -> bytes:
    """`score_against_speed` as the content of a file of this format."""
    return rendered(score_against_speed(lines, dense, about, metric), form)

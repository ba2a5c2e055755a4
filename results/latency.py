"""The picture of score against measured latency: patterns in the sparse runtime, and the dense runtimes as lines."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from results import columns
from results.figures import DENSE_COLOUR, GREY, STYLE, Mark, legend, marks_of
from results.rows import Row
from results.speed import Latency, conditions
from results.tradeoff import comparisons, dense_scores, draw_bars, legend_of_bars, score_label, seed_counts, series

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

FILLS = {"float32": "full", "bfloat16": "left", "int8": "none"}
"""How much of a marker is filled, by precision."""
_SHORT = {"float32": "fp32", "bfloat16": "bf16"}
_NAMES = {"onnx_runtime": "ONNX Runtime", "openvino": "OpenVINO"}
_GAP = 13  # points between the labels of two lines

Panel = tuple[str, int, int, int]
"""CPU, batch, length, threads."""


def timed(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The rows of one picture, by model, dataset and metric. Without a pruned row in the sparse runtime there is no
    picture."""
    groups = comparisons(row for row in rows if row.latencies)
    return {key: group for key, group in groups.items() if panels(group)}


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Those in which the sparse runtime ran a pruned row, in their order."""
    return sorted({_panel(each) for row in rows if not row.is_control for each in row.latencies if _sparse(each)})


def score_against_latency(rows: Sequence[Row]) -> Figure:
    """Mean score over seeds against the latency of the sparse runtime, a point for each pattern and precision, of the
    rows of one comparison; a panel for each CPU, batch, length and number of threads. Bars are at the slowest point of
    a row, as in the picture of score against sparsity.

    Vertical lines are the dense runtimes, at the median over the rows; a diamond on each is the dense score.
    """
    shown = panels(rows)
    wide = min(2, len(shown))
    deep = -(-len(shown) // wide)
    lines = series([row for row in rows if not row.is_control and any(map(_sparse, row.latencies))])
    marks = marks_of({label: of_pattern[0].pattern for label, of_pattern in lines.items()})
    with mpl.rc_context({**STYLE, "font.size": 10}):
        figure = Figure(figsize=(5.4 * wide + 1.9, 4.4 * deep + 0.5), layout="constrained")
        grid = list(figure.subplots(deep, wide, sharey=True, squeeze=False).flat)
        for axes, panel in zip(grid, shown, strict=False):
            _draw(axes, panel, rows, {label: (lines[label], marks[label]) for label in lines})
        for axes in grid[len(shown) :]:
            axes.remove()
        for axes in grid[::wide]:
            axes.set_ylabel(score_label(rows), fontsize=10)
        figure.suptitle(f"{rows[0].model} on {rows[0].scored_on}, {seed_counts(rows)}", fontsize=11)
        joined = any(len(of_pattern) > 1 for of_pattern in lines.values())
        legend(figure, _legend(marks, rows), _caption(rows, joined))
        figure.draw_without_rendering()  # fixes the limits of the axes and their width
        for axes, panel in zip(figure.axes, shown, strict=True):
            _name_lines(axes, _dense(rows, panel))
    return figure


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` from each other, in the order of the sorted `wanted` ones, with the least sum of squared
    moves: isotonic regression by pooling adjacent violators (Barlow et al. 1972), after subtracting the gaps."""
    blocks: list[list[float]] = []
    for at, place in enumerate(wanted):
        blocks.append([place - at * gap])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    levels = [fmean(block) for block in blocks for _ in block]
    return [level + at * gap for at, level in enumerate(levels)]


def _panel(latency: Latency) -> Panel:
    return latency.cpu, latency.batch, latency.length, latency.threads


def _sparse(latency: Latency) -> bool:
    return latency.runtime == columns.SPARSE and latency.precision in FILLS


def _of(row: Row, panel: Panel) -> list[Latency]:
    """The sparse runtime's latencies of a row in a panel, the slowest first."""
    return sorted((each for each in row.latencies if _sparse(each) and _panel(each) == panel), key=lambda e: -e.ms)


def _dense(rows: Iterable[Row], panel: Panel) -> list[tuple[float, str, str]]:
    """Milliseconds, name and precision of each dense runtime, the fastest first."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        for each in row.latencies:
            if each.runtime != columns.SPARSE and _panel(each) == panel:
                found[each.runtime, each.precision].append(each.ms)
    return sorted((median(times), _NAMES.get(runtime, runtime.replace("_", " ")), precision)
                  for (runtime, precision), times in found.items())  # fmt: skip


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row], lines: Mapping[str, tuple[list[Row], Mark]]) -> None:
    dense = fmean(dense_scores(rows))
    axes.axhline(dense, color=DENSE_COLOUR, linewidth=1)
    for ms, _, precision in _dense(rows, panel):
        axes.axvline(ms, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        axes.plot(ms, dense, color=DENSE_COLOUR, **_marker("D", precision, 5))
    for of_pattern, mark in lines.values():
        for precision in FILLS:
            points = [(each.ms, _score(row)) for row in of_pattern for each in _of(row, panel)
                      if each.precision == precision]  # fmt: skip
            axes.plot([ms for ms, _ in points], [score for _, score in points], color=mark.colour,
                      linestyle=mark.line, linewidth=1.2)  # fmt: skip
        for row in of_pattern:
            if not (times := _of(row, panel)):
                continue
            draw_bars(axes, [times[0].ms], [row], mark.colour)
            axes.plot([each.ms for each in times], [_score(row)] * len(times), color=mark.colour, linewidth=0.8,
                      linestyle=":")  # fmt: skip
            for each in times:
                axes.plot(each.ms, _score(row), color=mark.colour, **_marker(mark.marker, each.precision, 8))
            if len(of_pattern) > 1 and row.ratio is not None:
                axes.annotate(f"{row.ratio:.0%}", (times[0].ms, _score(row)), (7, 0), textcoords="offset points",
                              va="center", fontsize=8, color=mark.colour,
                              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08, y=0.12)
    kind = "CPU time" if panel[-1] == 1 else "time on the clock"
    axes.set_xlabel(f"ms for a batch ({kind}), {conditions(*panel[1:])}\n{textwrap.fill(panel[0], 60)}", fontsize=9)


def _score(row: Row) -> float:
    return fmean(sparse for _, sparse in row.scores)


def _marker(marker: str, precision: str, size: float) -> dict:
    fill = FILLS.get(precision, "full")
    # Not the fill "none": lines would be seen through the marker.
    faces = {"markerfacecolor": "white"} if fill == "none" else {"fillstyle": fill, "markerfacecoloralt": "white"}
    return {"marker": marker, "markersize": size, "linestyle": "none", "zorder": 3, **faces}


def _name_lines(axes: Axes, dense: Sequence[tuple[float, str, str]]) -> None:
    """Names above the axes, pushed apart, each with a leader to its line."""
    width = axes.get_window_extent().width * 72 / axes.figure.dpi  # points
    to_axes = axes.transData + axes.transAxes.inverted()
    lines = [float(to_axes.transform((ms, 0))[0]) for ms, _, _ in dense]
    for line, place, (_, name, precision) in zip(lines, apart(lines, _GAP / width), dense, strict=True):
        axes.annotate(f"{name} {_SHORT.get(precision, precision)}", (line, 1), (place, 1.06), "axes fraction",
                      "axes fraction", rotation=90, ha="center", va="bottom", fontsize=8, color=GREY,
                      annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0,
                                  "relpos": (0.5, 0)})  # fmt: skip


def _legend(marks: Mapping[str, Mark], rows: Sequence[Row]) -> list[Line2D]:
    patterns = [
        Line2D([], [], color=mark.colour, label=label, **_marker(mark.marker, "float32", 8))
        for label, mark in marks.items()
    ]
    used = {each.precision for row in rows for each in row.latencies}
    fills = [
        Line2D([], [], color=GREY, label=f"{name}{'' if name == 'float32' else ' (not scored)'}",
               **_marker("o", name, 8))
        for name in FILLS if name in used
    ]  # fmt: skip
    dense = [
        Line2D([], [], color=DENSE_COLOUR, linewidth=1, label="dense score"),
        Line2D([], [], color=GREY, linewidth=0.8, linestyle="--", label="dense runtimes"),
    ]
    return [*patterns, *fills, *dense]


def _caption(rows: Sequence[Row], joined: bool) -> str:
    lines = ["scores: the run's, as in the table; bfloat16 and int8 were not scored, and may differ"]
    lines += [legend_of_bars([row for row in rows if not row.is_control and any(map(_sparse, row.latencies))])]
    lines += ["percentages: zeros, of all Linear and Conv weights"] if joined else []
    slow = sorted({row.pattern for row in rows if not row.is_control and not any(map(_sparse, row.latencies))})
    lines += [f"not timed in the sparse runtime: {', '.join(slow)}"] if slow else []
    return "\n".join(lines)

"""Pictures of runs, for MLflow and for the report page: curves, sparsity by layer, what mask updates removed, and score
against sparsity. Readable without colour: markers, line styles, hatches and numbers say the same.
"""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from math import prod
from statistics import fmean
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from results import columns
from results.collect import Run, fetch_children, natural, select

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from mlflow import MlflowClient

# Okabe and Ito (2008): told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "os^Dv<>"
HATCHES = ("", "//", "--", "\\\\", "||", "xx", "++")  # of lines: circles would take ten times the bytes
OTHER = "other"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",  # text as text: a tenth of the bytes
    "svg.hashsalt": "prune-distill",  # the same picture has the same bytes
    "text.parse_math": False,  # labels are people's own
}

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric -> (step, value), in the order of the steps."""


def svg(figure: Figure) -> str:
    """The picture as an SVG element, with the same bytes each time."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


# --- one run ------------------------------------------------------------------------------------------------


def of_run(client: MlflowClient, run_id: str) -> dict[str, Figure]:
    """The pictures of a pruned run, by name, of what it has logged so far."""
    found = {}
    logged = client.get_run(run_id).data.metrics
    history = {key: _steps(client, run_id, key) for key in (columns.LOSS, columns.SPARSITY, columns.LEARNING_RATE)
               if key in logged}  # fmt: skip
    if history:
        found["training"] = training(history)
    layers = artifact(client, run_id, columns.LAYERS) or []
    if any(layer["zeros"] for layer in layers):
        found["layers"] = sparsity_by_layer(layers)
    updates = artifact(client, run_id, columns.UPDATES) or []
    if any(update["removed"] for update in updates):
        found["updates"] = mask_updates(updates, layers)
    return found


def _steps(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def artifact(client: MlflowClient, run_id: str, name: str) -> Any:
    """A JSON artifact of a run, or None if it did not log one."""
    if name not in {entry.path for entry in client.list_artifacts(run_id)}:
        return None
    with open(client.download_artifacts(run_id, name), encoding="utf-8") as text:
        return json.load(text)


def training(history: History) -> Figure:
    """Loss, sparsity and learning rate over the optimizer steps, on one time axis."""
    shown = [
        (columns.LOSS, "loss", COLOURS[0], False),
        (columns.SPARSITY, "sparsity", COLOURS[1], True),
        (columns.LEARNING_RATE, "learning rate", COLOURS[2], False),
    ]
    shown = [entry for entry in shown if entry[0] in history]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.6 * len(shown) + 0.6), layout="constrained")
        axes = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
        for at, (key, label, colour, steps) in zip(axes, shown, strict=True):
            x, y = zip(*history[key], strict=True)
            at.plot(x, y, color=colour, linewidth=1.4, drawstyle="steps-post" if steps else "default",
                    marker="." if len(x) < 3 else None)  # fmt: skip
            at.set_ylabel(label)
            if key == columns.SPARSITY:
                at.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        losses = [value for _, value in history.get(columns.LOSS, [])]
        if losses and min(losses) > 0 and max(losses) > 20 * min(losses):
            axes[0].set_yscale("log")
            axes[0].yaxis.set_major_formatter("{x:g}")  # not 10^-2: labels are no mathematics here
            axes[0].yaxis.set_minor_formatter(NullFormatter())
        axes[0].set_title("Training", fontsize=10)
        axes[-1].set_xlabel("optimizer step")
    return figure


def place(name: str) -> tuple[str, str]:
    """Which layer and which kind of matrix a weight is: "bert.encoder.layer.3.output.dense.weight" is 3, output.dense.
    Weights outside of numbered layers are in layer ""."""
    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", name.removesuffix(".weight"))
    return (found[1], found[2]) if found else ("", name.removesuffix(".weight"))


def sparsity_by_layer(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """A heat map of `columns.LAYERS`: a row for each layer, a column for each kind of matrix, numbers in it."""
    placed = {place(layer["name"]): layer for layer in layers}
    rows = sorted({row for row, _ in placed}, key=natural)
    kinds = list(dict.fromkeys(kind for _, kind in placed))
    values = [[placed[row, kind]["sparsity"] if (row, kind) in placed else float("nan") for kind in kinds]
              for row in rows]  # fmt: skip
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.6 + 0.75 * len(kinds), 1.9 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(kinds)), [kind.replace("attention.", "att.") for kind in kinds], rotation=40,
                        ha="right", rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(rows)), [row or "-" for row in rows])
        axes.set_ylabel("layer")
        axes.set_title("Sparsity by layer and kind of matrix", fontsize=10)
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value == value:  # not where a layer has no such matrix
                    dense = placed[rows[y], kinds[x]]["skipped"] is not None
                    axes.text(x, y, "dense" if dense else f"{value:.0%}", ha="center", va="center", fontsize=7,
                              color="white" if value < 0.55 else "black")  # fmt: skip
        figure.colorbar(image, ax=axes, format=PercentFormatter(1, decimals=0), label="sparsity")
    return figure


def mask_updates(updates: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]) -> Figure:
    """What each of `columns.UPDATES` removed, by kind of matrix, as a part of all weights that the pattern prunes. What
    came back is drawn below zero."""
    total = sum(prod(layer["shape"]) for layer in layers if not layer["skipped"]) or 1
    by_kind = [{sign: _by_kind(update[key]) for sign, key in ((1, "removed"), (-1, "returned"))} for update in updates]
    sums: defaultdict[str, int] = defaultdict(int)
    for update in by_kind:
        for kind, count in update[1].items():
            sums[kind] += count
    kinds = sorted(sums, key=lambda kind: (-sums[kind], kind))
    if len(kinds) > len(COLOURS):
        kinds = [*kinds[: len(COLOURS) - 1], OTHER]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        positions = range(len(updates))
        for sign in (1, -1):
            bottom = [0.0] * len(updates)
            for kind, colour, hatch in zip(kinds, COLOURS, HATCHES, strict=False):
                heights = [sign * _count(update[sign], kind, kinds) / total for update in by_kind]
                axes.bar(positions, heights, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3,
                         width=0.9, label=kind if sign > 0 else None)  # fmt: skip
                bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        shown = [at for at in MaxNLocator(8, integer=True).tick_values(0, len(updates) - 1) if 0 <= at < len(updates)]
        axes.set_xticks(shown, [str(updates[int(at)]["step"]) for at in shown])
        axes.set_title("What each mask update removed", fontsize=10)
        axes.set_xlabel("optimizer step of the mask update")
        axes.set_ylabel("of all prunable weights")
        axes.legend(fontsize=7, ncols=2)
    return figure


def _by_kind(weights: Mapping[str, int]) -> dict[str, int]:
    found: defaultdict[str, int] = defaultdict(int)
    for name, count in weights.items():
        found[place(name)[1]] += count
    return dict(found)


def _count(update: Mapping[str, int], kind: str, kinds: Sequence[str]) -> int:
    if kind != OTHER:
        return update.get(kind, 0)
    return sum(count for name, count in update.items() if name not in kinds)


# --- several runs -------------------------------------------------------------------------------------------


def of_sweep(client: MlflowClient, run_id: str) -> dict[str, Figure]:
    """The pictures of a sweep's runs, by name: one for each comparison."""
    runs, _ = select(fetch_children(client, run_id))
    found = {}
    for (model, dataset, metric), compared in comparisons(runs).items():
        if any(run.pattern != "dense" for run in compared):
            found[re.sub(r"[^\w.-]+", "_", f"{model}-{dataset}-{metric}")] = score_against_sparsity(compared)
    return found


def comparisons(runs: Iterable[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """The runs by what may stand in one picture: model, dataset and metric."""
    found: defaultdict[tuple[str, str, str], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.seed, run.run_id)):
        found[run.model, run.dataset, run.metric].append(run)
    return {key: found[key] for key in sorted(found, key=lambda key: [natural(part) for part in key])}


def score_against_sparsity(runs: Sequence[Run]) -> Figure:
    """Score against sparsity of the runs of one comparison: a point for each seed, a bar over their spread with their
    mean, the dense models as a line with their spread, and the same-budget dense control as a dashed one."""
    pruned = [run for run in runs if run.pattern != "dense" and run.ratio is not None]
    control = [run.sparse for run in runs if run.pattern == "dense"]
    dense = sorted({(run.seed, run.dense): run.dense for run in runs}.values())  # patterns share the models of a seed
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        _level(axes, dense, "dense", "#000000", "-")
        if control:
            _level(axes, control, "dense, same budget", "#555555", "--")
        patterns = sorted({run.pattern for run in pruned}, key=natural)
        for pattern, colour, marker in zip(patterns, cycle(COLOURS), cycle(MARKERS), strict=False):
            _points(axes, [run for run in pruned if run.pattern == pattern], pattern, colour, marker)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel("zeros, of all Linear and Conv weights")
        axes.set_ylabel(columns.written(runs[0].metric))
        axes.set_title(f"{runs[0].model} on {runs[0].dataset}", fontsize=10)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _level(axes: Axes, scores: Sequence[float], label: str, colour: str, line: str) -> None:
    axes.axhline(fmean(scores), color=colour, linestyle=line, linewidth=1.2, label=label)
    if max(scores) > min(scores):
        axes.axhspan(min(scores), max(scores), color=colour, alpha=0.08, linewidth=0)


def _points(axes: Axes, runs: Sequence[Run], pattern: str, colour: str, marker: str) -> None:
    by_ratio: defaultdict[float, list[float]] = defaultdict(list)
    for run in runs:
        assert run.ratio is not None
        by_ratio[round(run.ratio, 3)].append(run.sparse)  # runs of one target differ in single units
    at = sorted(by_ratio)
    means = [fmean(by_ratio[x]) for x in at]
    spread = [[mean - min(by_ratio[x]) for x, mean in zip(at, means, strict=True)],
              [max(by_ratio[x]) - mean for x, mean in zip(at, means, strict=True)]]  # fmt: skip
    axes.errorbar(
        at, means, yerr=spread, color=colour, marker=marker, markersize=6, capsize=4, linewidth=1, label=pattern
    )
    for x in at:
        axes.plot([x] * len(by_ratio[x]), by_ratio[x], color=colour, marker=marker, markersize=3, linestyle="none",
                  alpha=0.5)  # fmt: skip

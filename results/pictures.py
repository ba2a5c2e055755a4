"""Pictures that `runner` logs to MLflow when a run or a sweep ends: of a run the training curves, sparsity by layer and
mask updates; of a sweep the scores against sparsity and latency.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from results import columns, intervals
from results.figures import COLOURS, HATCHES, STYLE
from results.latency import score_against_latency, timed
from results.rows import pool
from results.runs import artifact, fetch_children, natural, select
from results.tradeoff import comparisons, score_against_sparsity

if TYPE_CHECKING:
    from mlflow import MlflowClient

OTHER = "other"

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric -> (step, value), in the order of the steps."""


def of_run(client: MlflowClient, run_id: str) -> dict[str, Figure]:
    """The pictures of a pruned run, by name, from what it has logged so far."""
    drawn = {}
    logged = client.get_run(run_id).data.metrics
    history = {key: _steps(client, run_id, key) for key in (columns.LOSS, columns.SPARSITY, columns.LEARNING_RATE)
               if key in logged}  # fmt: skip
    if history:
        drawn["training"] = training(history)
    layers = _entries(client, run_id, columns.LAYERS)
    if any(layer["zeros"] for layer in layers):
        drawn["layers"] = sparsity_by_layer(layers)
    updates = _entries(client, run_id, columns.UPDATES)
    if any(update["removed"] for update in updates):
        drawn["updates"] = mask_updates(updates, layers)
    return drawn


def of_sweep(client: MlflowClient, run_id: str) -> dict[str, Figure]:
    """The pictures of a sweep's runs, by name: for each comparison the scores against sparsity, and against latency if
    it was measured."""
    rows = intervals.add(client, pool(select(fetch_children(client, run_id))[0]))
    drawn = {_name(*key): score_against_sparsity(group) for key, group in comparisons(rows).items()}
    return drawn | {_name(*key, "latency"): score_against_latency(group) for key, group in timed(rows).items()}


def _name(*parts: str) -> str:
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _steps(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def _entries(client: MlflowClient, run_id: str, name: str) -> list[Any]:
    return json.loads(artifact(client, run_id, name) or "[]")


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
    """The layer and the kind of matrix of a weight: "bert.encoder.layer.3.output.dense.weight" is 3, output.dense.
    Weights outside of numbered layers are in layer ""."""
    numbered = re.search(r"(?:^|\.)(\d+)\.(.+)$", name.removesuffix(".weight"))
    return (numbered[1], numbered[2]) if numbered else ("", name.removesuffix(".weight"))


def sparsity_by_layer(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """A heat map of `columns.LAYERS` with numbers: a row for each layer, a column for each kind of matrix."""
    placed = {place(layer["name"]): layer for layer in layers if len(layer["shape"]) > 1}  # no biases
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
    """The weights that each of `columns.UPDATES` removed, by kind of matrix, as a share of all weights that the pattern
    prunes. Returned weights are drawn below zero."""
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
    counts: defaultdict[str, int] = defaultdict(int)
    for name, count in weights.items():
        counts[place(name)[1]] += count
    return dict(counts)


def _count(update: Mapping[str, int], kind: str, kinds: Sequence[str]) -> int:
    if kind != OTHER:
        return update.get(kind, 0)
    return sum(count for name, count in update.items() if name not in kinds)

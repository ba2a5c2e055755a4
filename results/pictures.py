"""Pictures of runs and of comparisons: of a run the training curves, sparsity by layer and mask updates; of rows the
scores against sparsity, latency and training. `runner` writes them when a run or a sweep ends.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from results import columns, intervals
from results.during import joined, score_during
from results.figures import COLOURS, SEQUENTIAL, STYLE, fills_of, rendered, titled
from results.formats import FOR_PICTURES
from results.latency import score_against_latency, timed
from results.layers import in_order, places
from results.rows import Row, pool
from results.runs import artifact, fetch_children, natural, select
from results.steps import score_against_steps, trained
from results.tradeoff import comparisons, score_against_sparsity

if TYPE_CHECKING:
    from mlflow import MlflowClient

OTHER = "other"
DURING = "score"
"""The name of a run's picture of score against sparsity while it was pruned."""
_LONGEST = 28  # characters of a name below a heat map
_SLANTED: Any = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}

History = Mapping[str, Sequence[tuple[int, float]]]
"""Metric -> (step, value), in the order of the steps."""


@dataclass(frozen=True)
class Drawing:
    """A kind of picture of scores."""

    groups: Callable[[Iterable[Row]], dict[tuple[str, str, str], list[Row]]]
    """The rows of each picture, by model, dataset and metric."""
    draw: Callable[[Sequence[Row]], Figure]
    needs: str = ""
    """What is missing where there is no group."""


AGAINST = {
    "sparsity": Drawing(comparisons, score_against_sparsity),
    "latency": Drawing(timed, score_against_latency,
                       "no pruned run was timed in the sparse runtime; run with benchmark=cpu"),
    "steps": Drawing(trained, score_against_steps,
                     "no two pruned rows differ in their number of steps alone; run -m train.num_train_epochs=1,3"),
}  # fmt: skip
"""The pictures of rows, by what scores are drawn against."""


def of_run(client: MlflowClient, run_id: str) -> dict[str, Figure]:
    """The pictures of a pruned run, by name, from what it has logged so far."""
    drawn = {}
    data = client.get_run(run_id).data
    about = _about(data.params)
    history = {key: _steps(client, run_id, key) for key in (columns.LOSS, columns.SPARSITY, columns.LEARNING_RATE)
               if key in data.metrics}  # fmt: skip
    if not any(sparsity for _, sparsity in history.get(columns.SPARSITY, [])):
        history.pop(columns.SPARSITY, None)  # a dense run prunes nothing
    if history:
        drawn["training"] = training(history, about)
    if (metric := data.tags.get(columns.METRIC)) and columns.VALIDATION_SPARSITY in data.metrics:
        scores, sparsities = (_steps(client, run_id, key) for key in (columns.VALIDATION + metric,
                                                                      columns.VALIDATION_SPARSITY))  # fmt: skip
        if any(sparsity for _, sparsity in sparsities) and (points := joined(scores, sparsities)):
            drawn[DURING] = score_during(points, metric, about)
    layers = _entries(client, run_id, columns.LAYERS)
    if any(layer["zeros"] for layer in layers):
        drawn["layers"] = sparsity_by_layer(layers, about)
    updates = _entries(client, run_id, columns.UPDATES)
    if any(update["removed"] for update in updates):
        drawn["updates"] = mask_updates(updates, layers, about)
    return drawn


def of_sweep(client: MlflowClient, run_id: str) -> dict[str, Figure]:
    """The pictures of a sweep's runs, by name: see `compared`."""
    return compared(intervals.add(client, pool(select(fetch_children(client, run_id))[0])))


def compared(rows: Sequence[Row]) -> dict[str, Figure]:
    """The pictures of rows, by name: for each model, dataset and metric the scores against sparsity, against latency
    where it was measured, and against training where rows differ in its length."""
    return {
        _name(*key, *([] if against == "sparsity" else [against])): drawing.draw(group)
        for against, drawing in AGAINST.items()
        for key, group in drawing.groups(rows).items()
    }


def write(figures: Mapping[str, Figure], folder: Path, forms: Sequence[str] = FOR_PICTURES) -> list[Path]:
    """Write each picture in each of the formats, as NAME.FORMAT; returns the files.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, figure in figures.items():
        for form in forms:
            file = folder / f"{name}.{form}"
            partial = file.with_name(f"{file.name}.tmp")
            partial.write_bytes(rendered(figure, form))
            partial.replace(file)
            files.append(file)
    return files


def _about(params: Mapping[str, str]) -> str:
    """The run that a picture is about: "bert-mini on squad, 4x1, seed 0"."""
    model, dataset, pattern, seed = (params.get(key, "?") for key in (*columns.LABELS, columns.SEED))
    return f"{model} on {dataset}, {pattern}, seed {seed}"


def _name(*parts: str) -> str:
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _steps(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def _entries(client: MlflowClient, run_id: str, name: str) -> list[Any]:
    return json.loads(artifact(client, run_id, name) or "[]")


def training(history: History, about: str | None = None) -> Figure:
    """Loss, sparsity and learning rate over the optimizer steps, on one time axis.

    Args:
        about: the run, for the title, as in the pictures below.
    """
    shown = [
        (columns.LOSS, "loss", COLOURS[0], False),
        (columns.SPARSITY, "sparsity", COLOURS[1], True),
        (columns.LEARNING_RATE, "learning rate", COLOURS[2], False),
    ]
    shown = [entry for entry in shown if entry[0] in history]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.6 * len(shown) + 0.7), layout="constrained")
        axes = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
        for at, (key, label, colour, steps) in zip(axes, shown, strict=True):
            x, y = zip(*history[key], strict=True)
            at.plot(x, y, color=colour, linewidth=1.4, drawstyle="steps-post" if steps else "default",
                    marker="." if len(x) < 3 else None)  # fmt: skip
            at.set_ylabel(label)
            if key == columns.SPARSITY:
                at.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
                at.set_ylim(0, 1)
            elif key == columns.LEARNING_RATE:
                at.set_ylim(bottom=0)
                at.ticklabel_format(axis="y", scilimits=(-2, 3))
        losses = [value for _, value in history.get(columns.LOSS, [])]
        if losses and min(losses) > 0 and max(losses) > 20 * min(losses):
            axes[0].set_yscale("log")
            axes[0].yaxis.set_major_formatter("{x:g}")  # not 10^-2: labels are no mathematics here
            axes[0].yaxis.set_minor_formatter(NullFormatter())
        axes[0].set_title(titled(about, "Training"), fontsize=10)
        axes[-1].set_xlabel("optimizer step")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def sparsity_by_layer(layers: Sequence[Mapping[str, Any]], about: str | None = None) -> Figure:
    """A heat map of `columns.LAYERS` with numbers: a row for each layer, a column for each kind of matrix."""
    matrices = [layer for layer in layers if len(layer["shape"]) > 1]  # no biases
    at = places(layer["name"] for layer in matrices)
    placed = {at[layer["name"]]: layer for layer in matrices}
    rows = sorted({row for row, _ in placed}, key=natural)
    kinds = in_order(kind for _, kind in placed)
    values = [[placed[row, kind]["sparsity"] if (row, kind) in placed else float("nan") for kind in kinds]
              for row in rows]  # fmt: skip
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(4.2, 1.6 + 0.7 * len(kinds)), 1.7 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
        name_axes(axes, rows, kinds)
        axes.set_title(titled(about, "Sparsity by layer and kind of matrix", 50), fontsize=10)
        for y, line in enumerate(values):
            for x, value in enumerate(line):
                if value == value:  # not where a layer has no such matrix
                    dense = placed[rows[y], kinds[x]]["skipped"] is not None
                    axes.text(x, y, "dense" if dense else f"{value:.0%}", ha="center", va="center", fontsize=7,
                              color="white" if value < 0.55 else "black")  # fmt: skip
        figure.colorbar(image, ax=axes, format=PercentFormatter(1, decimals=0), label="sparsity")
    return figure


def name_axes(axes: Any, rows: Sequence[str], kinds: Sequence[str]) -> None:
    """Names at the cells of a heat map: layers down, kinds of matrices across."""
    long = max(map(len, kinds)) > 7
    named = [kind if len(kind) <= _LONGEST else f"...{kind[3 - _LONGEST :]}" for kind in kinds]
    axes.set_xticks(range(len(kinds)), named, **(_SLANTED if long else {}))
    axes.set_yticks(range(len(rows)), [row or "-" for row in rows])
    axes.set_ylabel("layer")


def mask_updates(
    updates: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]], about: str | None = None
) -> Figure:
    """The weights that each of `columns.UPDATES` removed, by kind of matrix, as a share of all weights that the pattern
    prunes. Returned weights are drawn below zero."""
    total = sum(prod(layer["shape"]) for layer in layers if not layer["skipped"]) or 1
    names = (name for update in updates for key in ("removed", "returned") for name in update[key])
    kind_of = {name: kind for name, (_, kind) in places(sorted(names)).items()}
    by_kind = [{sign: _by_kind(update[key], kind_of) for sign, key in ((1, "removed"), (-1, "returned"))}
               for update in updates]  # fmt: skip
    sums: defaultdict[str, int] = defaultdict(int)
    for update in by_kind:
        for kind, count in update[1].items():
            sums[kind] += count
    kinds = sorted(sums, key=lambda kind: (-sums[kind], kind))
    if len(kinds) > len(COLOURS):
        kinds = [*kinds[: len(COLOURS) - 1], OTHER]
    kinds = in_order(kinds)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        positions = range(len(updates))
        for sign in (1, -1):
            bottom = [0.0] * len(updates)
            for kind, (colour, hatch) in fills_of(kinds, OTHER).items():
                heights = [sign * _count(update[sign], kind, kinds) / total for update in by_kind]
                axes.bar(positions, heights, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3,
                         width=0.9, label=kind if sign > 0 else None)  # fmt: skip
                bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        shown = [at for at in MaxNLocator(8, integer=True).tick_values(0, len(updates) - 1) if 0 <= at < len(updates)]
        axes.set_xticks(shown, [str(updates[int(at)]["step"]) for at in shown])
        axes.set_xlim(-0.6, max(len(updates), 4) - 0.4)  # one update is no bar as wide as the picture
        axes.set_title(titled(about, "What each mask update removed"), fontsize=10)
        axes.set_xlabel("optimizer step of the mask update")
        axes.set_ylabel("of all prunable weights")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _by_kind(weights: Mapping[str, int], kind_of: Mapping[str, str]) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for name, count in weights.items():
        counts[kind_of[name]] += count
    return dict(counts)


def _count(update: Mapping[str, int], kind: str, kinds: Sequence[str]) -> int:
    if kind != OTHER:
        return update.get(kind, 0)
    return sum(count for name, count in update.items() if name not in kinds)

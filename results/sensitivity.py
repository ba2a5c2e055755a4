"""The picture of `python -m runner.sensitivity`: heat maps of the loss by layer and kind of matrix, one a sparsity."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from results.figures import SEQUENTIAL, STYLE, rendered, titled
from results.layers import in_order, places
from results.pictures import name_axes
from results.runs import natural

_WIDE = 3  # heat maps in a row


def loss_by_layer(losses: Mapping[str, Mapping[float, float]], about: str) -> Figure:
    """A heat map for each sparsity, on one logarithmic scale of colours.

    Args:
        losses: name of the weight -> sparsity -> loss.
        about: model, dataset and pattern.
    """
    at = places(losses)
    sparsities = sorted({sparsity for of_layer in losses.values() for sparsity in of_layer})
    rows = sorted({row for row, _ in at.values()}, key=natural)
    kinds = in_order(kind for _, kind in at.values())
    every = [loss for of_layer in losses.values() for loss in of_layer.values() if loss > 0]
    scale = LogNorm(min(every, default=1e-9), max([*every, 2 * min(every, default=1e-9)]))
    wide = min(_WIDE, len(sparsities))
    deep = -(-len(sparsities) // wide)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        size = (max(4.6, wide * (0.5 + 0.58 * len(kinds)) + 1.1), max(2.6, deep * (0.75 + 0.2 * len(rows)) + 0.7))
        figure = Figure(figsize=size, layout="constrained")
        grid = list(figure.subplots(deep, wide, squeeze=False, sharey=True).flat)
        for axes, sparsity in zip(grid, sparsities, strict=False):
            values = [[float("nan")] * len(kinds) for _ in rows]
            for name, (row, kind) in at.items():
                values[rows.index(row)][kinds.index(kind)] = losses[name].get(sparsity, float("nan"))
            image = axes.imshow(values, cmap=SEQUENTIAL, norm=scale, aspect="auto")
            name_axes(axes, rows, kinds)
            axes.set_ylabel("layer" if axes.get_subplotspec().is_first_col() else "")
            axes.tick_params(axis="x", labelsize=8)
            axes.set_title(f"{100 * sparsity:.4g}% zeros in it", fontsize=9)
        for axes in grid[len(sparsities) :]:
            axes.remove()
        figure.colorbar(
            image, ax=figure.axes, format="{x:g}", fraction=0.04, pad=0.02, label="rise of the loss, nats a window"
        )
        figure.suptitle(titled(about, "Loss if one matrix alone is pruned", 30 * wide), fontsize=10)
    return figure


def picture(losses: Mapping[str, Mapping[float, float]], about: str, form: str) -> bytes:
    """`loss_by_layer` as the content of a file of this format."""
    return rendered(loss_by_layer(losses, about), form)

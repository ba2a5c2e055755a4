"""What the pictures show is what was logged; looked at through matplotlib's own objects."""

import json
import math
from typing import Any

import pytest
from mlflow.entities import Metric

from results import columns, pictures
from results.figures import COLOURS, rendered

LAYERS = [
    {"name": f"bert.encoder.layer.{i}.{kind}.weight", "shape": [4, 8], "zeros": zeros, "skipped": None,
     "sparsity": zeros / 32}
    for i, kind, zeros in [(0, "attention.self.query", 8), (0, "output.dense", 16), (10, "output.dense", 32),
                           (2, "attention.self.query", 0)]
]  # fmt: skip
UPDATES = [
    {"step": 3, "sparsity": 0.2, "removed": {LAYERS[0]["name"]: 8, LAYERS[1]["name"]: 4}, "returned": {}},
    {"step": 9, "sparsity": 0.4, "removed": {LAYERS[1]["name"]: 16}, "returned": {LAYERS[1]["name"]: 4}},
]


def axes_of(figure) -> Any:
    """The first of a picture, whose methods matplotlib's types do not all know."""
    return figure.axes[0]


def log(experiment, run_id, artifacts=(), steps=()):
    for name, values in artifacts:
        experiment.client.log_text(run_id, json.dumps(values), name)
    experiment.client.log_batch(run_id, [Metric(key, value, 0, step) for key, step, value in steps])


def test_a_run_gets_the_pictures_that_it_has_data_for(experiment):
    bare = experiment.log()
    assert pictures.of_run(experiment.client, bare) == {}
    run = experiment.log(seed=1)
    curve = [(columns.LOSS, step, 1.0 / step) for step in (1, 2, 3)] + [(columns.SPARSITY, 2, 0.5)]
    log(experiment, run, [(columns.LAYERS, LAYERS), (columns.UPDATES, UPDATES)], curve)
    found = pictures.of_run(experiment.client, run)
    assert list(found) == ["training", "layers", "updates"]
    axes: Any = found["training"].axes
    loss, sparsity = axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 1.0], [2, 0.5], [3, 1 / 3]]
    assert sparsity.lines[0].get_xydata().tolist() == [[2, 0.5]]
    assert sparsity.get_shared_x_axes().joined(loss, sparsity)


def test_the_heat_map_has_layers_in_their_order_and_says_the_numbers():
    outside = {**LAYERS[3], "name": "outside.weight", "skipped": "odd shape"}
    axes = axes_of(pictures.sparsity_by_layer([*LAYERS, outside]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["-", "0", "2", "10"]
    cells = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert cells == {(0, 2): "dense", (1, 0): "25%", (1, 1): "50%", (2, 0): "0%", (3, 1): "100%"}
    values = axes.images[0].get_array()
    assert math.isnan(values.filled(math.nan)[3, 0])  # no query in layer 10


def test_the_bars_of_an_update_add_up_to_what_it_removed():
    axes = axes_of(pictures.mask_updates(UPDATES, LAYERS))
    by_step = {0: [0.0, 0.0], 1: [0.0, 0.0]}
    for bar in axes.patches:
        by_step[round(bar.get_x() + bar.get_width() / 2)][int(bar.get_height() < 0)] += bar.get_height()
    assert by_step == {0: pytest.approx([12 / 128, 0]), 1: pytest.approx([16 / 128, -4 / 128])}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["3", "9"]


def test_many_kinds_of_matrix_are_drawn_as_others():
    updates = [{"step": 1, "sparsity": 0.1, "removed": {f"layer.0.kind{i}.weight": 20 - i for i in range(20)},
                "returned": {}}]  # fmt: skip
    axes = axes_of(pictures.mask_updates(updates, [{"shape": [300], "skipped": None}]))
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [*(f"kind{i}" for i in range(len(COLOURS) - 1)), pictures.OTHER]
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(210 / 300)


@pytest.mark.parametrize(("name", "expected"), [
    ("bert.encoder.layer.3.output.dense.weight", ("3", "output.dense")),
    ("distilbert.transformer.layer.11.ffn.lin1.weight", ("11", "ffn.lin1")),
    ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", ("0", "albert_layers.0.ffn")),
    ("projector.weight", ("", "projector")),
])  # fmt: skip
def test_the_place_of_a_weight(name, expected):
    assert pictures.place(name) == expected


def test_a_sweeps_pictures_are_of_its_own_runs(experiment):
    parent = experiment.log(kind=columns.SWEEP)
    experiment.log(parent=parent, model="org/mini $x$ <b>")
    experiment.log(seed=5)
    found = pictures.of_sweep(experiment.client, parent)
    assert list(found) == ["org_mini_x_b_-squad-f1"]
    text = rendered(found["org_mini_x_b_-squad-f1"], "svg").decode()
    assert "<b>" not in text
    assert text == rendered(found["org_mini_x_b_-squad-f1"], "svg").decode()

"""What the pictures show is what was logged; looked at through matplotlib's own objects."""

import json
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from mlflow.entities import Metric

from results import columns, layers, pictures
from results.__main__ import main
from results.figures import COLOURS, LINES, MARKERS, fills_of, mark_of, marks_of, rendered, slim

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


def test_scores_while_a_run_was_pruned_are_drawn_against_their_sparsity(experiment):
    run = experiment.log(seed=1)
    points = [(2, 0.0, 0.9), (4, 0.5, 0.7), (6, 0.8, 0.4), (9, 0.8, 0.6)]
    name = columns.VALIDATION + experiment.client.get_run(run).data.tags[columns.METRIC]
    log(experiment, run, steps=[(name, step, score) for step, _, score in points])
    assert pictures.DURING not in pictures.of_run(experiment.client, run)  # scores without sparsities
    log(experiment, run, steps=[(columns.VALIDATION_SPARSITY, step, sparsity) for step, sparsity, _ in points])
    axes = axes_of(pictures.of_run(experiment.client, run)[pictures.DURING])
    assert axes.lines[0].get_xydata().tolist() == [[sparsity, score] for _, sparsity, score in points]
    assert axes.collections[0].get_array().tolist() == [2, 4, 6, 9]
    assert "hold-out" in axes.get_ylabel()


def test_a_picture_of_a_run_that_was_not_scored_says_how_to_get_one(experiment, capsys):
    run = experiment.log(seed=1)
    uri = ["--tracking-uri", experiment.uri]
    assert main(["picture", "--run", run, *uri]) == 1
    assert "train.evaluate=updates dataset.validation=0.05" in capsys.readouterr().err
    assert main(["picture", "--run", "nothing", *uri]) == 1
    assert "error: --run nothing: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["table", "--run", run, *uri])


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
    assert layers.place(name) == expected


def test_a_sweeps_pictures_are_of_its_own_runs(experiment):
    parent = experiment.log(kind=columns.SWEEP)
    experiment.log(parent=parent, model="org/mini $x$ <b>")
    experiment.log(seed=5)
    found = pictures.of_sweep(experiment.client, parent)
    assert list(found) == ["org_mini_x_b_-squad-f1"]
    text = rendered(found["org_mini_x_b_-squad-f1"], "svg").decode()
    assert "<b>" not in text
    assert text == rendered(found["org_mini_x_b_-squad-f1"], "svg").decode()


# --- names of layers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [
    "attention.self.query attention.self.key attention.self.value attention.output.dense intermediate.dense "
    "output.dense",
    "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
    "attention.attn.q attention.attn.k attention.attn.v attention.attn.o intermediate.dense output.dense",
    "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj fc1 fc2",
    "albert_layers.0.attention.query albert_layers.0.attention.key albert_layers.0.attention.value "
    "albert_layers.0.attention.dense albert_layers.0.ffn albert_layers.0.ffn_output",
])  # fmt: skip
def test_matrices_of_known_families_have_short_names(names):
    full = [f"encoder.layer.{layer}.{name}.weight" for layer in (0, 11) for name in names.split()]
    found = layers.places(full)
    assert list(found.values()) == [(layer, kind) for layer in ("0", "11") for kind in layers.KINDS]


def test_two_weights_never_have_one_place():
    stacks = ["model.encoder.layers.0.self_attn.q_proj", "model.decoder.layers.0.self_attn.q_proj"]
    assert layers.places(stacks) == {stacks[0]: ("encoder 0", "Q"), stacks[1]: ("decoder 0", "Q")}
    alike = ["layer.0.attention.self.query", "layer.0.attention.query", "layer.0.fc1"]
    assert list(layers.places(alike).values()) == [
        ("0", "attention.self.query"), ("0", "attention.query"), ("0", "FFN-in"),
    ]  # fmt: skip
    assert layers.places(["pooler.dense.weight"]) == {"pooler.dense.weight": ("", "pooler.dense")}


def test_pictures_of_layers_show_short_names():
    axes = axes_of(pictures.sparsity_by_layer(LAYERS))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Q", "FFN-out"]
    updates = axes_of(pictures.mask_updates(UPDATES, LAYERS))
    assert [text.get_text() for text in updates.get_legend().get_texts()] == ["Q", "FFN-out"]


# --- style --------------------------------------------------------------------------------------------------


def test_a_pattern_has_one_mark_and_no_two_of_the_usual_ones_share_it():
    usual = ("4x1", "2:4", "1x1", "8x1", "16x1", "32x1", "rows", "columns", "4x4", "1:4", "4:8", "locked")
    marks = {pattern: (mark_of(pattern).colour, mark_of(pattern).marker) for pattern in usual}
    assert len(set(marks.values())) == len(usual)
    assert marks_of({"4x1 (a)": "4x1", "2:4": "2:4"})["2:4"] == marks_of({"2:4": "2:4"})["2:4"] == mark_of("2:4")
    other = mark_of("3x7")
    assert (other.colour, other.marker) not in marks.values()
    assert other.colour in COLOURS
    assert other.marker in MARKERS


def test_variants_of_a_pattern_share_its_colour_only():
    one, two = marks_of({"4x1 (a)": "4x1", "4x1 (b)": "4x1"}).values()
    assert one == mark_of("4x1")
    assert one.colour == two.colour
    assert one.marker != two.marker
    assert (one.line, two.line) == LINES[:2]


def test_a_kind_of_matrix_has_one_fill_whatever_else_is_drawn():
    alone, among = fills_of(["V"], pictures.OTHER), fills_of(["bottleneck", "V", pictures.OTHER], pictures.OTHER)
    assert alone["V"] == among["V"]
    assert len(set(among.values())) == 3
    many = fills_of([*layers.KINDS, pictures.OTHER], pictures.OTHER)
    assert len({colour for colour, _ in many.values()}) == len(COLOURS)


@pytest.mark.parametrize("form", ["png", "svg", "pdf"])
def test_a_file_has_the_same_bytes_each_time(form):
    once, again = (rendered(pictures.sparsity_by_layer(LAYERS, "bert on squad, 4x1, seed 0"), form) for _ in range(2))
    assert once == again
    assert b"CreationDate" not in once
    assert b"dc:date" not in once
    assert once != rendered(pictures.sparsity_by_layer(LAYERS[:1], "bert on squad, 4x1, seed 0"), form)


# --- runs ---------------------------------------------------------------------------------------------------


def test_titles_name_the_run_and_a_dense_run_has_no_sparsity_curve(experiment):
    curve = [(columns.LOSS, 1, 2.0), (columns.LOSS, 2, 1.0), (columns.SPARSITY, 1, 0.0), (columns.SPARSITY, 2, 0.0)]
    run = experiment.log(pattern="dense", seed=3)
    log(experiment, run, steps=curve)
    found = pictures.of_run(experiment.client, run)
    assert list(found) == ["training"]
    assert [axes.get_ylabel() for axes in found["training"].axes] == ["loss"]
    assert axes_of(found["training"]).get_title() == "bert-mini on squad, dense, seed 3\nTraining"


def test_the_command_writes_all_pictures_into_a_folder(experiment, tmp_path, monkeypatch, capsys):
    experiment.log()
    experiment.log(group="x", dataset="sst2", metric="accuracy")
    monkeypatch.chdir(tmp_path)
    store = ["--tracking-uri", experiment.uri, "--experiment", experiment.name, "--no-intervals"]
    assert main(["pictures", "--format", "pdf", "--output", "paper/all", *store]) == 0
    names = ["bert-mini-squad-f1.pdf", "bert-mini-sst2-accuracy.pdf"]
    assert capsys.readouterr().out.splitlines() == [f"paper/all/{name}" for name in names]
    assert sorted(file.name for file in (tmp_path / "paper" / "all").iterdir()) == names
    assert all(file.read_bytes().startswith(b"%PDF") for file in (tmp_path / "paper" / "all").iterdir())
    (tmp_path / "file").write_text("")
    assert main(["pictures", "--output", "file", *store]) == 1
    assert "error: --output file: " in capsys.readouterr().err


@pytest.mark.parametrize(("command", "form", "known"), [("pictures", "csv", "png, svg, pdf"),
                                                        ("table", "svg", "table, markdown")])  # fmt: skip
def test_a_format_of_another_command_is_refused(capsys, command, form, known):
    with pytest.raises(SystemExit) as stop:
        main([command, "--format", form])
    assert stop.value.code == 2
    assert f"--format {form}: formats of" in (text := capsys.readouterr().err)
    assert known in text


def test_a_slim_picture_is_the_same_picture():
    """Each element has the style, the places up to a hundredth of a point and the text that it had."""
    label = """a > b style="fill: red" d="M 1.23456 2" &"""
    figure = pictures.training({columns.LOSS: [(at, math.sin(at) + 2) for at in range(200)]}, label)
    whole = rendered(figure, "svg")
    short = slim(whole)
    assert len(short) < 0.75 * len(whole)
    assert slim(whole) == short
    css = re.findall(r"\.(s\d+)\{([^}]*)\}", short.decode())
    assert len(css) == len({style for _, style in css}) > 3
    before, after = (list(ElementTree.fromstring(svg).iter()) for svg in (whole, short))
    assert [element.tag for element in before] == [element.tag for element in after]
    assert label in "".join(ElementTree.fromstring(short).itertext())
    for old, new in zip(before, after, strict=True):
        assert (old.get("style")) == (new.get("style") or dict(css).get(new.get("class") or ""))
        for name in ("d", "x", "y"):
            numbers = [[float(each) for each in re.findall(r"-?\d+(?:\.\d+)?", element.get(name) or "")]
                       for element in (old, new)]  # fmt: skip
            assert numbers[1] == pytest.approx(numbers[0], abs=0.0051)
            commands = [re.findall(r"[A-Za-z]", element.get(name) or "") for element in (old, new)]
            assert commands[0] == commands[1]

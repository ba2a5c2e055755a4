"""The picture of score against measured latency shows what was timed; inspected through matplotlib's own objects."""

from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.text import Text
from mlflow.entities import Metric

from results import columns, latency, pictures, report
from results.__main__ import main
from results.figures import mark_of, rendered
from results.load import load
from results.rows import Row
from results.speed import Latency

CPU = "Fast CPU 9000"
SPARSE = [("sparse", "float32", 9.0), ("sparse", "bfloat16", 5.0), ("sparse", "int8", 4.0)]
DENSE = [("openvino", "bfloat16", 14.6), ("onnx_runtime", "int8", 14.7), ("torch.compile", "float32", 14.8)]


def times(*listed, cpu=CPU, batch=1, threads=1):
    return [Latency(ms, None, runtime, precision, batch, 128, threads, cpu, 2) for runtime, precision, ms in listed]


ROW = Row(
    **{"model": "bert-mini", "dataset": "squad", "pattern": "4x1", "seeds": [0, 1], "ratio": 0.8, "metric": "f1"},
    **{"dense_mean": 0.8, "dense_max": 0.82, "sparse_mean": 0.72, "sparse_max": 0.74, "drop_max": None},
    **{"drop_mean": -0.1, "differs": {}, "runs": ["a0", "a1"]},
    scores=[(0.78, 0.70), (0.82, 0.74)],
    latencies=times(*SPARSE, *DENSE),
)


def figure_of(rows) -> Any:
    ((_, group),) = latency.timed(rows).items()
    return latency.score_against_latency(group)


def points_of(axes):
    """(ms, score, marker, whether filled) of each marker."""
    drawn = [line for line in axes.lines if line.get_marker() not in ("None", None)]
    fills = {line: "none" if line.get_markerfacecolor() == "white" else line.get_fillstyle() for line in drawn}
    return [(*map(float, line.get_xydata()[0]), line.get_marker(), fills[line]) for line in drawn]


def test_each_precision_is_a_point_and_each_dense_runtime_a_line_with_the_dense_score():
    (axes,) = figure_of([ROW]).axes
    of_pattern = [point for point in points_of(axes) if point[2] == "o"]
    score = pytest.approx(0.72)
    assert of_pattern == [(9.0, score, "o", "full"), (5.0, score, "o", "left"), (4.0, score, "o", "none")]
    of_dense = [point for point in points_of(axes) if point[2] == "D"]
    dense = pytest.approx(0.8)
    assert of_dense == [(14.6, dense, "D", "left"), (14.7, dense, "D", "none"), (14.8, dense, "D", "full")]
    vertical = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
    assert vertical == [14.6, 14.7, 14.8]


def test_a_pattern_looks_as_in_the_picture_of_sparsity_and_has_its_interval():
    (axes,) = figure_of([replace(ROW, drop_interval=[-0.15, -0.05])]).axes
    (bar,) = [container[2][0] for container in axes.containers]
    assert bar.get_segments()[0].tolist() == [[9.0, pytest.approx(0.68)], [9.0, pytest.approx(0.76)]]
    assert to_hex(bar.get_color()[0]) == mark_of("4x1").colour.lower()


def test_what_was_not_scored_is_said():
    figure = figure_of([ROW, replace(ROW, pattern="2:4", latencies=times(*DENSE))])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["4x1", "float32", "bfloat16 (not scored)", "int8 (not scored)", "dense score", "dense runtimes"]
    assert "bfloat16 and int8 were not scored" in figure.get_supxlabel()
    assert "not timed in the sparse runtime: 2:4" in figure.get_supxlabel()
    assert "not timed" not in figure_of([ROW]).get_supxlabel()


def test_the_same_rows_give_the_same_bytes():
    first = rendered(figure_of([ROW]), "svg")
    assert first == rendered(figure_of([ROW]), "svg")
    assert b"OpenVINO bf16" in first
    assert first != rendered(figure_of([replace(ROW, pattern="8x1")]), "svg")


def test_names_of_dense_runtimes_do_not_overlap_however_close_their_times():
    figure = figure_of([ROW])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["OpenVINO bf16", "ONNX Runtime int8", "torch.compile fp32"]
    # Without the leaders, which annotations count as a part of themselves.
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.y0 > axes.get_window_extent().y1 for box in boxes)
    assert all(box.y1 < figure.bbox.y1 for box in boxes)


def test_a_line_joins_targets_and_names_their_sparsity():
    lower = replace(
        ROW, ratio=0.5, differs={"pattern.target_sparsity": "0.5"}, latencies=times(("sparse", "int8", 7.0))
    )
    (axes,) = figure_of([replace(ROW, differs={"pattern.target_sparsity": "0.8"}), lower]).axes
    assert [text.get_text() for text in axes.texts if "%" in text.get_text()] == ["50%", "80%"]
    joined = [line.get_xdata() for line in axes.lines if line.get_linestyle() == "-" and len(set(line.get_xdata())) > 1]
    assert [7.0, 4.0] in [list(each) for each in joined]


def test_a_panel_for_each_cpu_batch_length_and_number_of_threads():
    others = times(*SPARSE, batch=8) + times(*SPARSE, threads=2)
    figure = figure_of(
        [replace(ROW, latencies=ROW.latencies + others), replace(ROW, latencies=times(*SPARSE, cpu="B"))]
    )
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "ms for a batch (CPU time), batch 1, 128 tokens, 1 thread\nB",
        f"ms for a batch (CPU time), batch 1, 128 tokens, 1 thread\n{CPU}",
        f"ms for a batch (time on the clock), batch 1, 128 tokens, 2 threads\n{CPU}",
        f"ms for a batch (CPU time), batch 8, 128 tokens, 1 thread\n{CPU}",
    ]


def test_there_is_no_picture_without_a_pruned_row_in_the_sparse_runtime():
    assert latency.timed([replace(ROW, latencies=[])]) == {}
    assert latency.timed([replace(ROW, latencies=times(*DENSE))]) == {}
    assert latency.timed([replace(ROW, pattern="dense")]) == {}


@given(st.lists(st.floats(0, 1), max_size=8).map(sorted), st.floats(0.01, 0.3))
def test_places_are_apart_and_move_no_more_than_needed(wanted, gap):
    places = latency.apart(wanted, gap)
    assert len(places) == len(wanted)
    assert all(right - left >= gap - 1e-9 for left, right in pairwise(places))
    assert sum(places) == pytest.approx(sum(wanted))  # moves to the left and to the right cancel
    if all(right - left > gap for left, right in pairwise(wanted)):
        assert places == pytest.approx(wanted)


def test_close_places_move_to_both_sides():
    assert latency.apart([0.5, 0.5, 0.9], 0.2) == pytest.approx([0.4, 0.6, 0.9])


@pytest.fixture
def sweep(experiment):
    """A sweep with one timed run."""
    parent = experiment.log(kind=columns.SWEEP)
    run = experiment.log(parent=parent)
    listed = [Metric(columns.latency(name, precision, 1, 128, 1), ms, 0, 0) for name, precision, ms in SPARSE + DENSE]
    experiment.client.log_batch(run, listed)
    experiment.client.set_tag(run, columns.CPU, CPU)
    return experiment, parent


def test_a_sweep_and_the_report_have_the_picture_if_runs_were_timed(sweep):
    experiment, parent = sweep
    assert list(pictures.of_sweep(experiment.client, parent)) == ["bert-mini-squad-f1", "bert-mini-squad-f1-latency"]
    rows, _ = load(experiment.client, experiment.name)
    assert 'alt="bert-mini on squad: F1 against latency"' in report.page(experiment.client, rows, [], "x")
    assert "against latency" not in report.page(experiment.client, [replace(rows[0], latencies=[])], [], "x")


def test_the_command_draws_latency_where_it_was_measured(sweep, monkeypatch, tmp_path, capsys):
    experiment, _ = sweep
    monkeypatch.chdir(tmp_path)
    arguments = ["picture", "--against", "latency", "--tracking-uri", experiment.uri, "--experiment", experiment.name]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "score-against-latency.png: bert-mini on squad, 1 rows\n"
    experiment.log(group="x", model="other")
    assert main([*arguments, "--model", "other"]) == 1
    assert "run with benchmark=cpu" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["score-against-latency.png"]

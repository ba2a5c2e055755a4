"""The picture of score against sparsity shows what the table says; inspected through matplotlib's own objects."""

from dataclasses import replace
from typing import Any

import pytest
from matplotlib.colors import to_hex

from results import tradeoff
from results.controls import Control
from results.load import load
from results.rows import Row, pool
from results.runs import fetch, select

ROW = Row(
    **{"model": "bert-mini", "dataset": "squad", "pattern": "4x1", "seeds": [0, 1], "ratio": 0.8, "metric": "f1"},
    **{"dense_mean": 0.8, "dense_max": 0.82, "sparse_mean": 0.72, "sparse_max": 0.74, "drop_max": None},
    **{"drop_mean": -0.1, "drop_interval": [-0.15, -0.05], "differs": {}, "runs": ["a0", "a1"]},
    scores=[(0.78, 0.70), (0.82, 0.74)],
)


def axes_of(rows) -> Any:
    return tradeoff.score_against_sparsity(rows).axes[0]


def bars_of(axes):
    return [[tuple(map(tuple, segment)) for segment in each[2][0].get_segments()] for each in axes.containers]


def legend_of(axes):
    return [text.get_text() for text in axes.figure.legends[0].get_texts()]


def test_scores_against_sparsity_show_each_seed_and_their_spread(experiment):
    for seed, (sparse, control) in enumerate([(0.70, 0.82), (0.74, 0.84)]):
        experiment.log(seed=seed, dense=0.8, sparse=sparse, ratio=0.8)
        experiment.log(seed=seed, dense=0.8, sparse=control, ratio=0.0, pattern="dense", group="c")
    runs, _ = select(fetch(experiment.client, experiment.name))
    (compared,) = tradeoff.comparisons(pool(runs)).values()
    axes = axes_of(compared)
    levels = {line.get_label(): line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1}
    assert levels["dense"] == 0.8
    assert levels["dense, same budget"] == pytest.approx(0.83)
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "None" and line.get_alpha()]
    assert points == [[[0.8, 0.70], [0.8, 0.74]]]
    (mean,) = [line for line in axes.lines if line.get_label() == "4x1"]
    _, _, (bar,) = axes.containers[0]
    assert mean.get_xydata().tolist() == [[0.8, pytest.approx(0.72)]]
    assert bar.get_segments()[0].tolist() == [[0.8, pytest.approx(0.70)], [0.8, pytest.approx(0.74)]]


def test_bars_end_at_the_best_and_the_worst_score_there_is():
    few = replace(ROW, drop_interval=[-1.5, 0.9])
    assert tradeoff.bounds(few) == (0, 1)
    assert few.dense_mean is not None
    assert tradeoff.bounds(replace(few, metric="pearson"))[0] == few.dense_mean * (1 - 1.5) < 0


def test_bars_are_the_tables_interval(experiment):
    dense, sparse = [0.5, 0.9, 1.0, 0.8], [0.4, 0.9, 0.9, 0.3]
    for seed in (0, 1):
        experiment.log(seed=seed, scores=(dense, [score - 0.05 * seed for score in sparse]))
    (row,), _ = load(experiment.client, experiment.name)
    assert row.drop_interval is not None
    axes = axes_of([row])
    (((low, high),),) = bars_of(axes)
    assert [y / row.dense_mean - 1 for _, y in (low, high)] == pytest.approx(row.drop_interval)
    assert axes.containers[0][2][0].get_linestyle()[0][1] is None  # solid
    note = axes.figure.get_supxlabel()
    assert "95% interval of the drop from dense" in note
    assert "dotted" not in note


def test_a_row_without_an_interval_has_a_dotted_range_of_its_seeds():
    axes = axes_of([ROW, replace(ROW, ratio=0.9, drop_interval=None, differs={tradeoff.TARGET_SPARSITY: "0.9"})])
    (bars,) = bars_of(axes)  # one line: only the target differs
    ends = [pytest.approx(end) for end in ((0.8, 0.68), (0.8, 0.76), (0.9, 0.70), (0.9, 0.74))]
    assert [*bars[0], *bars[1]] == ends
    solid, dotted = axes.containers[0][2][0].get_linestyle()
    assert solid[1] is None
    assert dotted[1] is not None
    note = axes.figure.get_supxlabel()
    assert "95% interval" in note
    assert "dotted bars: range over seeds" in note


def test_lines_join_what_differs_in_the_target_only():
    lone = {tradeoff.TARGET_SPARSITY: "0.8", "distill": "none"}
    rows = [replace(ROW, ratio=0.9, differs={tradeoff.TARGET_SPARSITY: "0.9", "distill": "logits"}),
            replace(ROW, differs={tradeoff.TARGET_SPARSITY: "0.8", "distill": "logits"}),
            replace(ROW, differs=lone), replace(ROW, pattern="2:4")]  # fmt: skip
    axes = axes_of(rows)
    assert legend_of(axes) == ["dense", "2:4", "4x1 (distill=logits)", "4x1 (distill=none)"]
    joined = axes.lines[[line.get_label() for line in axes.lines].index("4x1 (distill=logits)")]
    assert [x for x, _ in joined.get_xydata().tolist()] == [0.8, 0.9]


def test_levels_of_controls_have_names():
    control = Control(0.81, 0.82, None, None, None, [0], ["c"])
    plain = replace(control, mean=0.79, runs=["p"])
    axes = axes_of(
        [replace(ROW, control=control, plain=plain), replace(ROW, differs={"distill": "none"}, control=plain)]
    )
    across = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
    levels = {line.get_label().replace("\n", " "): line.get_ydata()[0] for line in across}
    assert levels == {"dense": 0.8, "dense, same budget": 0.81, "dense, same budget, no distillation": 0.79}
    dense = replace(ROW, pattern="dense", runs=["c"], ratio=0.0, scores=[(0.8, 0.80), (0.8, 0.82)])
    assert legend_of(axes_of([replace(ROW, control=control), dense])) == ["dense", "dense, same budget", "4x1"]


def test_axes_have_units_and_the_title_the_number_of_seeds():
    axes = axes_of([ROW, replace(ROW, pattern="2:4", seeds=[0], scores=[(0.78, 0.7)])])
    assert axes.get_xlabel() == "zeros, % of all Linear and Conv weights"
    assert axes.get_ylabel() == "F1, mean over seeds (fraction)"
    assert axes.get_title() == "bert-mini on squad, 1 to 2 seeds"
    assert len({to_hex(line.get_color()) for line in axes.lines if line.get_label() in ("4x1", "2:4")}) == 2


def test_there_is_no_comparison_without_a_pruned_row():
    assert tradeoff.comparisons([replace(ROW, pattern="dense"), replace(ROW, model="x", runs=[])]) == {}
    assert list(tradeoff.comparisons([replace(ROW, model="bert-10"), replace(ROW, model="bert-2")])) == [
        ("bert-2", "squad", "f1"),
        ("bert-10", "squad", "f1"),
    ]


def test_one_seed_has_its_interval_over_examples(experiment):
    experiment.log(scores=([0.5, 0.9, 1.0, 0.8], [0.4, 0.9, 0.9, 0.3]))
    (row,), _ = load(experiment.client, experiment.name)
    axes = axes_of([row])
    (((low, high),),) = bars_of(axes)
    assert high[1] > low[1]
    assert [low[1] / row.dense_mean - 1, high[1] / row.dense_mean - 1] == pytest.approx(row.drop_interval)
    assert axes.figure.get_supxlabel() == "bars: 95% interval of the drop from dense, over examples"
    assert axes.get_ylabel() == "F1 (fraction)"

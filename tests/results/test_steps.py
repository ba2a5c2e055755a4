"""The picture of score against training joins runs that differ in their length alone."""

from dataclasses import replace
from typing import Any

import pytest
from mlflow.entities import Metric

from results import columns, steps
from results.__main__ import main
from results.controls import Control
from results.rows import Row

ROW = Row(
    **{"model": "minilm", "dataset": "squad", "pattern": "4x1", "seeds": [0, 1], "ratio": 0.8, "metric": "f1"},
    **{"dense_mean": 0.8, "dense_max": 0.82, "sparse_mean": 0.72, "sparse_max": 0.74, "drop_max": None},
    **{"drop_mean": -0.1, "drop_interval": [-0.15, -0.05], "runs": ["a0", "a1"]},
    differs={"criterion": "snip", "schedule": "short", "schedule.cooldown": "10%", "train.num_train_epochs": "3"},
    scores=[(0.78, 0.70), (0.82, 0.74)], steps=300.0,
)  # fmt: skip


def after(row: Row, count: float, score: float, **differs: str) -> Row:
    """The row of a training of so many steps."""
    return replace(row, steps=count, scores=[(0.8, score)] * 2,
                   differs={**row.differs, "train.num_train_epochs": f"{count / 100:g}", **differs})  # fmt: skip


OBS = {"criterion": "obs", "schedule": "one_shot", "schedule.cooldown": "(default)"}
ROWS = [ROW, after(ROW, 30, 0.5), after(ROW, 300, 0.75, **OBS), after(ROW, 0, 0.6, **OBS), after(ROW, 90, 0.7, **OBS)]


def figure_of(rows: list[Row]) -> Any:
    ((_, group),) = steps.trained(rows).items()
    return steps.score_against_steps(group)


def lines_of(axes: Any) -> dict[str, list[list[float]]]:
    named = [line for line in axes.lines if not line.get_label().startswith("_") and len(line.get_xdata()) > 1]
    return {line.get_label(): line.get_xydata().tolist() for line in named if line.get_label() != "dense"}


def test_a_line_for_each_recipe_over_the_share_of_the_steps() -> None:
    figure = figure_of(ROWS)
    (axes,) = figure.axes
    assert lines_of(axes) == {
        "obs, one_shot": [[0.0, 0.6], [0.3, pytest.approx(0.7)], [1.0, 0.75]],
        "snip, short": [[0.1, 0.5], [1.0, pytest.approx(0.72)]],
    }
    assert axes.get_title() == "4x1, 80% zeros"
    assert figure.get_suptitle() == "minilm on squad, 2 seeds"
    assert "100% is 300" in figure.get_supxlabel()
    assert sorted(len(bars[2][0].get_segments()) for bars in axes.containers) == [2, 3]  # intervals


def test_what_nothing_trained_gives_is_the_start_of_every_line_that_only_training_sets_apart() -> None:
    rows = [after(ROW, count, 0.7, **OBS, distill=how) for count in (90, 300) for how in ("logits", "hidden")]
    untrained = after(ROW, 0, 0.6, **OBS, distill="logits", **{"train.learning_rate": "7e-5"})
    other = after(ROW, 0, 0.5, **OBS, **{"criterion.seed": "7"})
    lines = lines_of(figure_of([*rows, untrained, other]).axes[0])
    assert [line[0] for line in lines.values()] == [[0.0, pytest.approx(0.6)]] * 2


def test_a_long_legend_fits_into_the_picture() -> None:
    rows = [after(ROW, count, 0.5, seed=str(x)) for count in (30, 300) for x in range(30)]
    figure = figure_of(rows)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 31
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_long_labels_stand_below_the_axes_whole() -> None:
    rows = [after(ROW, count, 0.5, **{"model.attention_dropout": str(x)}) for count in (30, 300) for x in (0, 0.1)]
    figure = figure_of(rows)
    labels = [text.get_text().replace("\n   ", "") for text in figure.legends[0].get_texts()]
    assert labels == ["dense", *(f"snip, short (model.attention_dropout={x})" for x in (0, 0.1))]
    figure.draw_without_rendering()
    legend, (axes,) = figure.legends[0].get_window_extent(), figure.axes
    assert legend.y1 < axes.get_tightbbox().y0
    assert legend.x1 < figure.bbox.x1
    assert "100% is 300" in figure.legends[0].get_title().get_text()


def test_a_recipe_looks_alike_in_all_panels_and_patterns_have_panels_of_their_own() -> None:
    others = [replace(row, pattern="2:4", ratio=0.5) for row in ROWS if row.differs["criterion"] == "snip"]
    first, second = figure_of([*ROWS, *others]).axes
    assert [axes.get_title() for axes in (first, second)] == ["2:4, 50% zeros", "4x1, 80% zeros"]
    (one,), (two,) = ([line for line in axes.lines if line.get_label() == "snip, short"] for axes in (first, second))
    assert (one.get_color(), one.get_marker()) == (two.get_color(), two.get_marker())


def test_recipes_that_differ_in_more_have_it_in_their_name() -> None:
    rows = [after(ROW, count, 0.5, **{"distill": how}) for count in (30, 300) for how in ("none", "logits")]
    labels = {label.replace("\n", " ") for label in lines_of(figure_of(rows).axes[0])}
    assert labels == {"snip, short (distill=none)", "snip, short (distill=logits)"}


def test_the_control_of_each_length_is_a_line() -> None:
    control = Control(0.79, 0.8, None, None, None, [0], ["c"])
    rows = [replace(ROW, control=control), replace(after(ROW, 30, 0.5), control=replace(control, mean=0.77))]
    assert lines_of(figure_of(rows).axes[0])["dense, same budget"] == [[0.1, 0.77], [1.0, 0.79]]


def test_there_is_no_picture_of_one_length() -> None:
    assert steps.trained([ROW, after(ROW, 300, 0.7, **OBS)]) == {}
    assert steps.trained([replace(row, steps=None) for row in ROWS]) == {}
    assert steps.trained([ROW, after(ROW, 30, 0.5, distill="none")]) == {}


def test_the_command_draws_what_was_logged(experiment: Any, tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["picture", "--against", "steps", "--tracking-uri", experiment.uri, "--experiment", experiment.name]
    for epochs in ("1", "3"):
        run = experiment.log(group=epochs, params={"train.num_train_epochs": epochs, "criterion": "obs"})
        assert main(command) == 1  # one length, or a length that was not logged yet
        assert "no two pruned rows differ in their number of steps alone" in capsys.readouterr().err
        experiment.client.log_batch(run, [Metric(columns.STEPS, 100.0 * int(epochs), 0, 0)])
    assert main(command) == 0
    assert capsys.readouterr().out == "score-against-steps.png: bert-mini on squad, 2 rows\n"

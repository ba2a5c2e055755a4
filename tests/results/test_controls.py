"""Which runs are the control of a row."""

import pytest

from results.filters import Filters
from results.load import load


def find(experiment, pattern="4x1"):
    rows, _ = load(experiment.client, experiment.name)
    (row,) = [row for row in rows if row.pattern == pattern]
    return row


def test_controls_are_found_behind_a_filter(experiment):
    experiment.log(control="c")
    dense = experiment.log(control="c", group="d", pattern="dense", sparse=0.75)
    (row,), _ = load(experiment.client, experiment.name, Filters(pattern="4x1"))
    assert row.control is not None
    assert (row.control.mean, row.control.runs) == (0.75, [dense])


@pytest.mark.parametrize("change", [{"control": "other"}, {"control": None}, {"metric": "accuracy"}, {"pattern": "2:4"},
                                    {"status": "FAILED"}, {"verified": "false"}])  # fmt: skip
def test_what_is_no_control(experiment, change):
    experiment.log(control="c")
    experiment.log(**{"control": "c", "group": "d", "pattern": "dense", **change})
    (row,) = [row for row in load(experiment.client, experiment.name)[0] if row.pattern == "4x1"]
    assert row.control is None
    assert "no same-budget dense control: pattern=dense, and all else as here" in row.notes


def test_controls_have_no_controls(experiment):
    experiment.log(control="c", budget="b", group="d", pattern="dense", params={"distill": "logits"})
    experiment.log(control="p", budget="b", group="p", pattern="dense", params={"distill": "none"})
    rows, _ = load(experiment.client, experiment.name)
    assert [(row.control, row.plain) for row in rows] == [(None, None)] * 2
    assert not [note for row in rows for note in row.notes if "control" in note]


def test_a_row_without_distillation_has_one_control(experiment):
    experiment.log(control="c", budget="b", params={"distill": "none"})
    experiment.log(control="c", budget="b", group="d", pattern="dense", params={"distill": "none"})
    row = find(experiment)
    assert row.control is not None
    assert row.plain is None


def test_the_candidate_with_most_seeds_is_taken(experiment):
    experiment.log(control="c")
    few = experiment.log(control="c", group="z", pattern="dense")
    most = [experiment.log(control="c", group="a", pattern="dense", seed=seed) for seed in (0, 1)]
    row = find(experiment)
    assert row.control is not None
    assert (row.control.runs, row.control.rivals) == (most, 2)
    assert few not in row.control.runs
    assert "several groups of runs could be a control: the one with most seeds is" in row.notes

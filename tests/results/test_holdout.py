"""Runs with `dataset.holdout` score a part of train: they are never shown as scored on the evaluation split, nor in one
picture with runs that are."""

import re

import numpy as np
import pytest

from results import pictures
from results.__main__ import main
from results.load import load
from results.published import compare
from results.sentences import sentence


@pytest.fixture
def both(experiment):
    """A run on the official 9 examples of evaluation, and one on 2 of the 20 for training."""
    sizes = {"official.train": 20, "official.evaluation": 9}
    experiment.log(group="a", dense=0.8, sparse=0.7, counts=sizes | {"examples.train": 20, "examples.evaluation": 9},
                   params={"dataset.holdout": 0.0})  # fmt: skip
    experiment.log(group="b", dense=0.9, sparse=0.85, counts=sizes | {"examples.train": 18, "examples.evaluation": 2},
                   params={"dataset.holdout": 0.1})  # fmt: skip
    return experiment


def test_the_note_and_the_sentence_say_what_was_scored(both):
    rows, _ = load(both.client, both.name)
    (official,) = [row for row in rows if row.holdout is None]
    (held_out,) = [row for row in rows if row.holdout == "0.1"]
    scored = "2 examples held out of train (dataset.holdout=0.1), not on the evaluation split"
    assert f"trained on 18 of 20 examples, evaluated on {scored}" in held_out.notes
    assert sentence(held_out).endswith(f"; trained on 18 of 20 examples and scored on {scored}.")
    assert not [note for note in official.notes if "evaluated on" in note]


def test_a_holdout_is_not_compared_with_a_published_score(both):
    rows = compare(load(both.client, both.name)[0], lambda *_: False)
    assert [row.published is not None for row in rows] == [row.holdout is None for row in rows]


def test_the_report_has_a_picture_of_each(both, tmp_path):
    page = tmp_path / "report.html"
    assert main(["report", "--tracking-uri", both.uri, "--experiment", both.name, "--output", str(page)]) == 0
    shown = page.read_text(encoding="utf-8")
    for scored in ("squad", "squad, hold-out 0.1 of train"):
        assert f"bert-mini on {scored}: F1 against sparsity" in shown


def test_each_picture_has_scores_on_the_same_examples(both):
    drawn = pictures.compared(load(both.client, both.name)[0])
    dense = {
        name: [np.asarray(line.get_ydata())[0] for line in figure.axes[0].lines if line.get_label() == "dense"]
        for name, figure in drawn.items()
    }
    assert dense == {"bert-mini-squad-f1": [0.8], "bert-mini-squad_hold-out_0.1_of_train-f1": [0.9]}
    title = drawn["bert-mini-squad_hold-out_0.1_of_train-f1"].axes[0].get_title()
    assert title == "bert-mini on squad, hold-out 0.1 of train, 1 seed"


def test_the_command_draws_the_evaluation_split_and_names_what_it_leaves_out(both, tmp_path, capsys):
    given = ["--tracking-uri", both.uri, "--experiment", both.name, "--output", str(tmp_path / "picture.svg")]
    assert main(["picture", *given]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("picture.svg: bert-mini on squad, 1 rows\n")
    assert re.search(r"note: not drawn, .*: bert-mini squad, hold-out 0.1 of train f1; `pictures` draws all", shown.err)

"""What so few examples cannot show is noted: in the table, on the model card and in the record."""

import json
import re
from dataclasses import replace

import datasets
import pytest

from results import caveats, columns, intervals
from results.rows import pool
from results.runs import fetch, select
from runner.data.classification import Classify
from runner.data.examples import Examples
from runner.data.scores import Scores
from runner.records import card
from runner.stages import record
from tests.results.conftest import *  # noqa: F403 - the store's fixtures
from tests.results.test_caveats import SOUND
from tests.runner.records.test_card import facts, structure


def rows_of_table(experiment) -> list:
    """The rows as the table shows them, with intervals and notes."""
    runs, _ = select(fetch(experiment.client, experiment.name))
    return caveats.add(intervals.add(experiment.client, pool(runs)))


RIGHT = [1.0] * 18 + [0.0] * 2


@pytest.mark.bad_input(
    "A9", "six runs whose predictions are all the same", before="+0.00 %, interval +0.00 % to +0.00 %, no note",
    after="a note: no example changes, and what drop so few leave room for",
)  # fmt: skip
def test_six_runs_in_which_nothing_changes(experiment) -> None:
    for seed in range(6):
        experiment.log(seed=seed, scores=(RIGHT, RIGHT), counts={columns.EVALUATION_EXAMPLES: 20})
    (row,) = rows_of_table(experiment)
    assert (row.drop_mean, row.drop_interval) == (0, [0, 0])
    # 3 / 20 of all examples may change, each by at most 1, and the dense score is 0.9.
    assert (
        "no example scores differently than with the dense model, which is no proof that none would: 20 examples leave "
        "room for a change in 15.00% of all (rule of three, 95 %), a drop of 16.67%"
    ) in row.notes
    assert any(note.startswith("scored on 20 examples, fewer than 300") for note in row.notes)


@pytest.mark.bad_input(
    "A9", "one of six runs has one other answer", before="no note", after="no such note: the interval has a width",
)  # fmt: skip
def test_one_example_that_changes_is_a_change(experiment) -> None:
    for seed in range(6):
        experiment.log(seed=seed, scores=(RIGHT, [0.0, *RIGHT[1:]] if seed == 5 else RIGHT))
    (row,) = rows_of_table(experiment)
    assert row.drop_interval != [0, 0]
    assert not any("no example scores differently" in note for note in row.notes)


@pytest.mark.bad_input(
    "A9", "F1 of a class, no prediction differs", before="no note", after="the note, without a drop: F1 is no mean",
)  # fmt: skip
def test_no_drop_is_derived_for_a_metric_that_is_no_mean(experiment) -> None:
    counts = [[1, 0, 0]] * 8 + [[0, 1, 0]] * 2
    scores = {"id": list(range(10)), "dense": [], "sparse": [],
              "statistics": {"name": "f1", "dense": counts, "sparse": counts}}  # fmt: skip
    score = 16 / 18
    experiment.log(dense=score, sparse=score, scores=json.dumps(scores))
    (row,) = rows_of_table(experiment)
    (note,) = [note for note in row.notes if note.startswith("no example scores differently")]
    assert note.endswith("10 examples leave room for a change in 30.00% of all (rule of three, 95 %)")


@pytest.mark.bad_input(
    "A9", "the control has the same predictions", before="+0.00 % to +0.00 % against the control, no note",
    after="a note that begins with: against the control",
)  # fmt: skip
def test_nothing_changes_against_the_control(experiment) -> None:
    dense = [0.0, *RIGHT[1:]]
    experiment.log(scores=(dense, RIGHT), control="c")
    experiment.log(scores=(dense, RIGHT), control="c", pattern="dense", group="control")
    row = next(row for row in rows_of_table(experiment) if row.pattern == "4x1")
    assert row.control.interval == [0, 0]
    (note,) = [note for note in row.notes if "no example scores differently" in note]
    assert note.startswith("against the control: ")


@pytest.mark.bad_input(
    "A9", "all examples lose half alike", before="interval -50 % to -50 %, no note",
    after="a note: the interval has no width",
)  # fmt: skip
def test_an_interval_without_width(experiment) -> None:
    experiment.log(scores=([1.0] * 8, [0.5] * 8))
    (row,) = rows_of_table(experiment)
    assert row.drop_interval == [-0.5, -0.5]
    assert "an interval has no width: all examples change alike, and others need not" in row.notes


def notes_of(**changes: object) -> list[str]:
    (row,) = caveats.add([replace(SOUND, **changes)])  # type: ignore[arg-type]
    return row.notes


@pytest.mark.bad_input("A9", "277 evaluation examples", before="no note", after="what share may change unseen")
def test_a_small_evaluation_set() -> None:
    (note,) = notes_of(evaluation_examples=277, official_evaluation=277)
    assert note == (
        "scored on 277 examples, fewer than 300: even if none of them changed, a change in 1.08% of all could not be "
        "excluded (rule of three)"
    )
    assert notes_of(evaluation_examples=300, official_evaluation=300) == []
    assert columns.most_changing(300) == 0.01  # the threshold's reason
    assert columns.most_changing(1) == columns.most_changing(3) == 1
    for examples in (3, 20, 300, 10_000):  # 3/n is at least the exact bound, and near it
        exact = 1 - 0.05 ** (1 / examples)
        assert exact <= columns.most_changing(examples) < exact * 1.6


@pytest.mark.bad_input(
    "A9", "classes with 9, 1 and 0 evaluation examples", before="no note", after="named with their counts",
)  # fmt: skip
def test_rare_classes(experiment) -> None:
    counts = {"good": 500, "ten": 10, "nine": 9, "one": 1, "none": 0}
    note = columns.rare_classes(counts)
    assert note == "classes with fewer than 10 evaluation examples: none (0), one (1), nine (9)"
    assert columns.rare_classes({"good": 500, "ten": 10}) is None
    assert columns.rare_classes({f"c{i}": 1 for i in range(8)}).endswith("c4 (1) and 3 more")  # type: ignore[union-attr]
    assert columns.rare_classes({"\x1b[31mred" + "d" * 99: 2}).count("\x1b") == 0  # type: ignore[union-attr]
    experiment.log(counts={columns.RARE_CLASSES: note, columns.EVALUATION_EXAMPLES: 520})
    (row,) = rows_of_table(experiment)
    assert note in row.notes


def test_classes_are_counted_in_the_first_split() -> None:
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["a", "b", "c"]), "split": datasets.Value("string")}
    )
    examples = datasets.Dataset.from_dict({"label": [0, 0, 1, 1], "split": ["dev", "dev", "dev", "test"]}, features)
    task = Classify(path="nowhere", text="text", label="label", metric="accuracy")
    assert task.scored_counts(examples) == {"a": 2, "b": 1, "c": 0}


def test_runs_under_several_circumstances(experiment) -> None:
    experiment.log(
        seed=0, counts={columns.OTHER_CIRCUMSTANCES: "the pruning from step 0 to step 30: torch 1 instead of 2"}
    )
    experiment.log(seed=1)
    (row,) = rows_of_table(experiment)
    assert any(note.startswith("1 run made in part under other versions") for note in row.notes)


# --- the record and the card --------------------------------------------------------------------------------


def recorded(dense: Scores, sparse: Scores | None) -> list[str]:
    """The notes of a run with these scores."""

    class Run:
        class experiment:
            dataset = Classify(path="nowhere", text="text", label="label", metric="accuracy")

        class inputs:
            examples = Examples(None, labelled, "", "", "")

    return list(record.notes(Run, record.Outcome(dense, sparse)))  # type: ignore[arg-type]


labelled = datasets.Dataset.from_dict(
    {"label": [0] * 390 + [1] * 10}, datasets.Features({"label": datasets.ClassLabel(names=["a", "b"])})
)


@pytest.mark.bad_input(
    "A9", "a single run whose predictions are all the same", before="a drop of +0.00 % on the card, no note",
    after="a note in result.json, on the card and in the log",
)  # fmt: skip
def test_the_record_of_a_run_in_which_nothing_changes() -> None:
    same = {str(i): float(i % 4 > 0) for i in range(400)}
    scores = Scores({"accuracy": 0.75}, by_example=same)
    other = Scores({"accuracy": 0.7475}, by_example={**same, "1": 0.0})
    assert recorded(scores, other) == recorded(scores, None) == []
    assert recorded(scores, scores) == [columns.none_changes(400, 0.75)]
    assert recorded(scores, scores)[0].endswith("in 0.75% of all (rule of three, 95 %), a drop of 1.00%")
    statistics = Scores({"accuracy": 0.75}, by_example=same, statistics={key: [1.0] for key in same})
    assert recorded(statistics, statistics) == [columns.none_changes(400, None)]


@pytest.mark.parametrize(
    "name", ["plain", "<script>", "[l](http://e)", "# h", "*b*", "`x", "|", "a\nb", "&lt;", "~~s~~"]
)
def test_the_card_has_the_notes(name: str) -> None:
    def written(name: str) -> str:
        known = facts()
        notes = [str(columns.rare_classes({name: 3})), str(columns.few_examples(7))]
        return card.text(replace(known, result=replace(known.result, notes=notes)))

    text = written(name)
    assert "- Note: classes with fewer than 10 evaluation examples: " in text
    assert "- Note: scored on 7 examples, fewer than 300" in text
    assert structure(text) == structure(written("plain"))
    assert "Note:" not in card.text(facts())
    assert not re.search(r"\n\n\n", card.text(facts()).split("## Scores")[1].split("##")[0])

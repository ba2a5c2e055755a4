"""Classes: listed with counts, slips in their names, and their share of a hold-out."""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import dry_run
from runner.config.compose import compose_experiment
from runner.data.classification import Classify
from runner.data.slips import listed, slips
from runner.data.splits import held_out
from runner.data.tagging import Tag
from runner.stages.announce import announce
from runner.stages.prepare import resolve
from runner.system.errors import UserError

# --- slips --------------------------------------------------------------------------------------------------

ALMOST = "are almost the same name"
FORM = "differ in case, blanks or the form of characters only"
MISSING = "looks like a missing label"
SLIPS: dict[str, tuple[dict[str, int], str]] = {
    "goood": ({"good": 24, "bad": 20, "goood": 1}, f"the classes good (24 times) and goood (1 times) {ALMOST}"),
    "positve": ({"positive": 90, "negative": 80, "positve": 3}, ALMOST),
    "sapm": ({"spam": 40, "ham": 90, "sapm": 1}, ALMOST),
    "B-PRE": ({"O": 900, "B-PER": 60, "I-PER": 50, "B-PRE": 1}, f"B-PER (60 times) and B-PRE (1 times) {ALMOST}"),
    "Good": ({"good": 24, "Good": 20}, FORM),
    "'good ' with a blank": ({"good": 24, "good ": 20}, f"good (24 times) and 'good ' (20 times) {FORM}"),
    "good with U+200B": ({"good": 24, "\u200bgood": 4}, f"good (24 times) and '\\u200bgood' (4 times) {FORM}"),
    "full-width good": ({"good": 24, "\uff47\uff4f\uff4f\uff44": 4}, FORM),
    "decomposed umlaut": ({"gr\u00fcn": 24, "gru\u0308n": 4}, f"and 'gru\\u0308n' (4 times) {FORM}"),
    "o as O": ({"O": 900, "o": 2, "B-PER": 60}, FORM),
    "nan": ({"good": 24, "nan": 3}, f"the class nan (3 times) {MISSING}"),
    "None": ({"good": 24, "None": 3}, MISSING),
    "NULL": ({"good": 24, "NULL": 3}, MISSING),
    "N/A": ({"good": 24, "N/A": 3}, MISSING),
    "a blank": ({"good": 24, " ": 3}, f"the class ' ' (3 times) {MISSING}"),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input(
        "A10", f"{name} among the labels", before="a class, never shown", after="a warning names it with its count"))
    for name in SLIPS
])  # fmt: skip
def test_slips_are_named(name: str) -> None:
    counts, message = SLIPS[name]
    (slip,) = slips(counts)
    assert message in slip


@pytest.mark.parametrize("counts", [
    {"good": 24, "bad": 20},
    {"entailment": 500, "not_entailment": 2, "neutral": 90},
    {"legal": 500, "illegal": 2},
    {"increase": 100, "decrease": 4},
    {"B-PER": 500, "I-PER": 9, "B-ORG": 3, "O": 9000},
    {"1": 100, "2": 3, "10": 2},
    {"class_1": 100, "class_2": 1},
    {"grade a": 100, "grade b": 1},
    {"cats": 10, "cuts": 9},  # close, and neither is rare
    {"good": 24, "goood": 0},  # named in dataset.labels, and does not occur
], ids=str)  # fmt: skip
def test_other_names_are_no_slips(counts: dict[str, int]) -> None:
    assert list(slips(counts)) == []


def test_the_list_of_classes() -> None:
    assert listed({"bad": 3, "good": 12_000, "none yet": 0}) == "good (12,000), bad (3), none yet (0)"
    assert listed({"a\x1b[31m": 1, "b ": 2}) == "'b ' (2), 'a\\x1b[31m' (1)"
    many = listed({f"class {i}": 1000 - i for i in range(100)})
    assert many.startswith("class 0 (1,000), class 1 (999), ")
    assert many.endswith(", ... 84 more ..., class 96 (904), class 97 (903), class 98 (902), class 99 (901)")


def reviews(folder: Path, labels: Sequence[str], name: str = "reviews") -> Path:
    file = folder / f"{name}.csv"
    file.write_text("text,label\n" + "".join(f"{name} {i},{label}\n" for i, label in enumerate(labels)))
    return file


def composed(folder: Path, path: Path, task: str = "classify") -> tuple[Any, Any]:
    """A dense run of the embedded model on a file."""
    return compose_experiment([
        "model=tiny", f"dataset={task}", f"dataset.path={path}", "prune=false", f"cache_dir={folder}/cache",
        f"output_dir={folder}/outputs", "finetune.max_steps=2", f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ])  # fmt: skip


@pytest.mark.bad_input("A10", "reviews.csv with goood among 40 labels", before="three classes, never shown",
                       after="run and dry run list the classes and warn")  # fmt: skip
def test_classes_are_listed_before_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = reviews(tmp_path, ["good", "bad"] * 19 + ["good", "goood"])
    with caplog.at_level(logging.INFO):
        announce(resolve(*composed(tmp_path, path)))
    assert "classes in training: good (18), bad (17), goood (1)" in caplog.text
    assert "classes in evaluation: bad (2), good (2), goood (0)" in caplog.text
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("the classes good (20 times) and goood (1 times) are almost the same name: if that is")


@pytest.mark.bad_input("A10", "sentences with the tags B-PER and B-per", before="two classes, never shown",
                       after="the dry run lists the tags and warns")  # fmt: skip
def test_tags_are_listed_in_a_dry_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"tokens": ["Ada", "sings"], "ner_tags": ["B-per" if i == 7 else "B-PER", "O"]} for i in range(20)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.INFO):
        dry_run.show(*composed(tmp_path, tmp_path, "tag"))
    assert "classes in training: O (20), B-PER (19), B-per (1)" in caplog.text
    assert "the classes B-PER (38 times) and B-per (2 times) differ in case" in caplog.text
    assert f"training: {tmp_path}/train.jsonl (20); validation: {tmp_path}/dev.jsonl (20)" in caplog.text


@pytest.mark.bad_input("A10", "dataset.label=id, with the numbers 0 and 2000000000", after="refused",
                       before="out of memory: two thousand million classes")  # fmt: skip
def test_numbers_that_are_no_classes(tmp_path: Path) -> None:
    path = reviews(tmp_path, ["0", "2000000000"])
    with pytest.raises(UserError, match="the numbers from 0 to 2000000000 make more classes than there are examples"):
        Classify(path=str(path)).read()
    path = reviews(tmp_path, ["5", "1", "3"] * 4)
    assert Classify(path=str(path)).read().evaluation.features["label"].names == ["1", "2", "3", "4", "5"]


# --- the hold-out -------------------------------------------------------------------------------------------


@pytest.mark.bad_input("A9", "a file of 100 reviews with 10 of a rare class",
                       before="0 to 4 of them were held out, by chance", after="one of them for each seed")  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_the_hold_out_has_each_class(seed: int, tmp_path: Path) -> None:
    path = reviews(tmp_path, (["good"] * 4 + ["bad"] * 5 + ["mixed"]) * 10)
    read, again = (Classify(path=str(path), data_seed=seed).read() for _ in range(2))
    assert Classify(path=str(path)).class_counts(read.evaluation) == {"bad": 5, "good": 4, "mixed": 1}
    assert read.evaluation.to_list() == again.evaluation.to_list()


@pytest.mark.bad_input("A9", "a file of 100 sentences with 10 of a rare entity",
                       before="0 to 4 of them were held out, by chance", after="one of them for each seed")  # fmt: skip
@pytest.mark.parametrize("seed", range(5))
def test_the_hold_out_has_each_rare_tag(seed: int, tmp_path: Path) -> None:
    rows = [
        {"tokens": [f"Ada{i}", "sings"], "ner_tags": ["B-LOC" if i % 10 == 0 else "B-PER", "O"]} for i in range(100)
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Tag(path=str(tmp_path / "all.jsonl"), data_seed=seed)
    assert task.class_counts(task.read().evaluation) == {"B-LOC": 1, "B-PER": 9, "O": 10}


@settings(deadline=None, derandomize=True, max_examples=200)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=80),
    texts=st.integers(1, 90),
    fraction=st.sampled_from([0.1, 0.25, 0.5]),
    seed=st.integers(0, 9),
)
def test_hold_outs_are_stratified(labels: list[int], texts: int, fraction: float, seed: int) -> None:
    groups = [str(i % texts) for i in range(len(labels))]
    strata = [labels[i % texts] for i in range(len(labels))]  # all of a group are alike
    rest, held = held_out(groups, fraction, seed, strata)
    assert sorted(rest + held) == list(range(len(labels)))
    assert not {groups[i] for i in rest} & {groups[i] for i in held}
    largest = max(Counter(groups).values())
    assert len(held) < fraction * len(labels) + largest
    if len(set(strata)) > 1:
        assert {strata[i] for i in rest} == set(strata)  # no class is left without training examples
        for stratum in set(strata):
            share = sum(strata[i] == stratum for i in held) - fraction * strata.count(stratum)
            assert share < 2 * largest
    assert held_out(groups, fraction, seed, strata) == (rest, held)
    assert held_out(groups, fraction, seed, [0] * len(groups)) == held_out(groups, fraction, seed)

"""Metrics that are no mean over the examples, and several in one table. The bootstrap is held against loops over plain
lists, which compute each metric from the answers themselves, by its definition.
"""

import json
import random
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from results import bootstrap, columns, formats, intervals, tradeoff
from results.__main__ import main
from results.bootstrap import Sample, interval
from results.load import load
from results.rows import pool
from results.runs import fetch, select

# --- references: the metric of lists of answers, and the numbers of each example as `results.bootstrap` has them ----


def f1(answers, gold, of=1):
    hits = sum(a == g == of for a, g in zip(answers, gold, strict=True))
    total = answers.count(of) + gold.count(of)
    return 2 * hits / total if total else 0.0


def macro_f1(answers, gold):
    return statistics.fmean(f1(answers, gold, of) for of in {*answers, *gold})


def correlation(answers, gold):
    """Pearson's; of classes 0 and 1 it is Matthews'."""
    if len({*answers}) == 1 or len({*gold}) == 1:
        return 0.0
    return statistics.correlation(answers, gold)


def entity_f1(answers, gold):
    """Of sentences whose entities are sets."""
    correct = sum(len(a & g) for a, g in zip(answers, gold, strict=True))
    total = sum(map(len, answers)) + sum(map(len, gold))
    return 2 * correct / total if total else 0.0


def counts(a, g, of=1):
    return [float(a == g == of), float(a == of != g), float(g == of != a)]


NUMBERS: dict[str, Callable] = {
    "f1": counts,
    "macro_f1": lambda a, g: [each for of in range(3) for each in counts(a, g, of)],
    "matthews_correlation": lambda a, g: [float(a == g), *(float(a == of) for of in (0, 1)),
                                          *(float(g == of) for of in (0, 1))],
    "pearson": lambda a, g: [a, g, a * a, g * g, a * g],
    "entity_f1": lambda a, g: [len(a & g), len(a), len(g)],
}  # fmt: skip
METRICS: dict[str, Callable] = {
    "f1": f1, "macro_f1": macro_f1, "matthews_correlation": correlation, "pearson": correlation, "entity_f1": entity_f1,
}  # fmt: skip


def gold_of(name, generator, count) -> list[Any]:
    if name == "pearson":
        return [generator.uniform(0, 5) for _ in range(count)]
    if name == "entity_f1":
        return [set(generator.sample(range(5), generator.choice([0, 1, 2, 2]))) for _ in range(count)]
    return [generator.randrange(3 if name == "macro_f1" else 2) for _ in range(count)]


def answers_to(name, gold, generator, wrong):
    """Right but for a part."""
    others = gold_of(name, generator, len(gold))
    if name == "pearson":
        return [g + 4 * wrong * (o - 2.5) for g, o in zip(gold, others, strict=True)]
    return [o if generator.random() < wrong else g for g, o in zip(gold, others, strict=True)]


def rows_of(name, answers, gold):
    return [NUMBERS[name](a, g) for a, g in zip(answers, gold, strict=True)]


def sample(name, models, gold, seeds):
    return Sample(seeds, [np.array(rows_of(name, answers, gold), dtype=float) for answers in models], name)


def naive(metric, dense, sparse, gold, paired, resamples):
    """The interval by a loop in a loop, with the draws that the module makes; None where it is not defined."""
    drops = []
    questions = np.random.default_rng([bootstrap.SEED, 0])
    streams = {1: np.random.default_rng([bootstrap.SEED, 1]), 2: np.random.default_rng([bootstrap.SEED, 2])}

    def seeds(count, stream):
        times = streams[stream].multinomial(count, np.full(count, 1 / count))
        return [seed for seed, n in enumerate(times) for _ in range(n)]

    def mean(models, seeds, drawn):
        return statistics.fmean(metric([models[s][q] for q in drawn], [gold[q] for q in drawn]) for s in seeds)

    for _ in range(resamples):
        drawn = questions.integers(len(gold), size=len(gold)).tolist()
        of_sparse = seeds(len(sparse), 1)
        below = mean(dense, of_sparse if paired else seeds(len(dense), 2), drawn)
        if below <= columns.ZERO:
            return None
        drops.append((mean(sparse, of_sparse, drawn) - below) / below)
    return np.quantile(drops, [0.025, 0.975]).tolist()


@pytest.mark.parametrize("name", METRICS)
@given(seed=st.integers(0, 10**6), models=st.integers(1, 3), paired=st.booleans(), count=st.integers(8, 25),
       wrong=st.sampled_from([0.1, 0.3, 0.9]))  # fmt: skip
@example(seed=3623, models=1, paired=False, count=15, wrong=0.1)  # a resample whose labels are all of one class
@settings(max_examples=12, deadline=None)
def test_agrees_with_a_naive_loop_over_the_answers(name, seed, models, paired, count, wrong):
    generator = random.Random(seed)
    gold = gold_of(name, generator, count)
    dense = [answers_to(name, gold, generator, wrong) for _ in range(models if paired else 2)]
    sparse = [answers_to(name, gold, generator, 1.5 * wrong) for _ in range(models)]
    theirs = list(range(models)) if paired else [7, 8]
    found = interval(sample(name, dense, gold, theirs), sample(name, sparse, gold, list(range(models))), resamples=30)
    expected = naive(METRICS[name], dense, sparse, gold, paired, 30)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))
    whole = statistics.fmean(METRICS[name](answers, gold) for answers in dense)
    assert sample(name, dense, gold, theirs).metric() == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"entity_f1"}))
@given(seed=st.integers(0, 10**6), count=st.integers(2, 40), offset=st.floats(-100, 100))
@settings(max_examples=30, deadline=None)
def test_the_metric_of_equal_labels_or_answers_is_not_left_to_rounding(name, seed, count, offset):
    """A resample may repeat one label, and rounding must not make a correlation of it."""
    generator = random.Random(seed)
    gold = gold_of(name, generator, 40)
    gold[:20] = [gold[0]] * 20
    shift = offset if name == "pearson" else 0
    answers = [each + shift for each in answers_to(name, gold, generator, 0.3)]
    alike = [at for at in range(40) if gold[at] == gold[0]]
    times = np.bincount(generator.choices(alike, k=40), minlength=40)[None].astype(float)
    drawn = np.repeat(np.arange(40), times[0].astype(int)).tolist()
    expected = METRICS[name]([answers[at] for at in drawn], [gold[at] for at in drawn])
    for scored in (rows_of(name, answers, gold), rows_of(name, gold, answers)):  # the latter: equal answers
        one = Sample([0], [np.array(scored, dtype=float)], name)
        assert bootstrap._metrics(one, times).item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    one = sample(name, [[answers[0]] * count], [gold[0]] * count, [0])
    assert one.metric() == METRICS[name]([answers[0]] * count, [gold[0]] * count)


def test_a_mean_is_the_same_as_a_statistic():
    generator = np.random.default_rng(0)
    dense = generator.random((3, 40))
    sparse = dense * generator.random((3, 40))
    plain = interval(Sample([0, 1, 2], dense), Sample([0, 1, 2], sparse))
    assert plain == interval(Sample([0, 1, 2], dense[:, :, None]), Sample([0, 1, 2], list(sparse[:, :, None])))


def test_models_may_have_different_numbers_of_classes():
    gold, generator = [0, 1, 0, 1, 1, 0, 1, 0] * 4, random.Random(1)
    both = [answers_to("f1", gold, generator, 0.3) for _ in range(2)]
    three = sample("macro_f1", both, gold, [0, 1])  # numbers of a class 2, which is in none of them
    two = [np.array(each)[:, :6] for each in three.scores]
    mixed = Sample([0, 1], [two[0], three.scores[1]], "macro_f1")
    assert interval(three, mixed, resamples=50) == pytest.approx([0, 0], abs=1e-12)
    assert mixed.metric() == pytest.approx(statistics.fmean(macro_f1(each, gold) for each in both))


# --- from the store ----------------------------------------------------------------------------------------------


def artifact(name, dense, sparse, right=()):
    """What the runner logs. `right` are whether the answers are, where that is known."""
    ids = [f"e{i:02}" for i in range(len(dense))]
    return json.dumps({"id": ids, "dense": list(right), "sparse": list(right),
                       "statistics": {"name": name, "dense": dense, "sparse": sparse}})  # fmt: skip


def log(experiment, dataset, metric, name, *, seeds=(0, 1), others=None, worse=0.45, pattern="4x1", **more):
    """Runs of a dataset whose main metric follows from a statistic. Returns gold, and the answers of both by seed."""
    generator = random.Random(f"{dataset} {metric}")
    gold = gold_of(name, generator, 60)
    dense = [answers_to(name, gold, generator, 0.2) for _ in seeds]
    sparse = [answers_to(name, gold, generator, worse) for _ in seeds]
    for seed, before, after in zip(seeds, dense, sparse, strict=True):
        text = artifact(name, rows_of(name, before, gold), rows_of(name, after, gold))
        group = f"{dataset}-{metric}-{pattern}"
        experiment.log(dataset=dataset, metric=metric, seed=seed, pattern=pattern, group=group,
                       dense=METRICS[name](before, gold), sparse=METRICS[name](after, gold), scores=text,
                       metrics=others, **more)  # fmt: skip
    return gold, dense, sparse


@pytest.mark.parametrize(("metric", "name"), [("f1", "f1"), ("f1", "entity_f1"), ("macro_f1", "macro_f1"),
                                              ("matthews_correlation", "matthews_correlation"),
                                              ("pearson", "pearson")])  # fmt: skip
def test_rows_have_the_intervals_of_their_metric(experiment, metric, name):
    gold, dense, sparse = log(experiment, "data", metric, name)
    (row,), _ = load(experiment.client, experiment.name)
    expected = naive(METRICS[name], dense, sparse, gold, paired=True, resamples=bootstrap.RESAMPLES)
    assert expected is not None
    assert row.drop_interval == pytest.approx(expected, abs=1e-9)
    assert not [note for note in row.notes if note.startswith("no interval")]


def everything(experiment):
    """One run or two of each kind of dataset."""
    generator = random.Random(2)
    by_example = [([float(generator.random() < p) for _ in range(50)]) for p in (0.9, 0.8)]
    experiment.log(dataset="sst2", metric="accuracy", group="a", scores=tuple(by_example))
    experiment.log(dataset="squad", group="b", scores=([0.5, 0.9, 1.0], [0.4, 0.9, 0.9]))
    log(experiment, "mrpc", "f1", "f1", others={"dense/accuracy": 0.8, "sparse/accuracy": 0.7543})
    log(experiment, "cola", "matthews_correlation", "matthews_correlation")
    log(experiment, "stsb", "pearson", "pearson", others={"dense/spearmanr": 0.88, "sparse/spearmanr": 0.8642})
    log(experiment, "conll", "f1", "entity_f1")
    experiment.log(dataset="mnli", metric="accuracy", group="m", scores=([1.0, 0.5, 1.0], [1.0, 0.5, 0.5]),
                   metrics={"sparse/accuracy_validation_mismatched": 0.7321})  # fmt: skip


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_several_metrics_in_one_table(experiment, capsys):
    everything(experiment)
    given = ["--tracking-uri", experiment.uri, "--experiment", experiment.name, "--format", "markdown"]
    assert main(given) == 0
    header, _, *lines = (line for line in capsys.readouterr().out.splitlines() if line.startswith("|"))
    found = {cells(line)[1]: dict(zip(cells(header), cells(line), strict=True)) for line in lines}
    assert {dataset: row["Metric"] for dataset, row in found.items()} == {
        "cola": "Matthews correlation", "conll": "F1", "mnli": "Accuracy", "mrpc": "F1", "squad": "F1",
        "sst2": "Accuracy", "stsb": "Pearson correlation",
    }  # fmt: skip
    assert {"Dense score (mean/max)", "Sparse score (mean/max)"} < set(cells(header))
    accuracy = {dataset: row["Sparse accuracy (mean)"] for dataset, row in found.items()}
    main_one = {dataset: row["Sparse score (mean/max)"] for dataset, row in found.items()}
    assert accuracy == {"cola": "-", "conll": "-", "squad": "-", "stsb": "-", "mrpc": "0.7543",
                        "sst2": main_one["sst2"], "mnli": main_one["mnli"]}  # fmt: skip
    assert found["mnli"]["Sparse accuracy validation mismatched (mean)"] == "0.7321"
    assert found["stsb"]["Sparse Spearman correlation (mean)"] == "0.8642"
    assert all("%" in row["95% interval of the drop of means"] for row in found.values())


def test_the_only_metric_names_the_columns(experiment):
    log(experiment, "cola", "matthews_correlation", "matthews_correlation")
    rows, _ = load(experiment.client, experiment.name)
    assert "| Dense Matthews correlation (mean/max) |" in formats.markdown(rows)
    assert "Metric" not in formats.markdown(rows)


@pytest.mark.parametrize(("dense", "sparse"), [(-0.1, 0.2), (0.0, 0.3), (1e-17, 0.3)])
def test_there_is_no_drop_from_nothing_or_less(experiment, dense, sparse):
    assert columns.relative_drop(dense, sparse) is None
    experiment.log(dataset="cola", metric="matthews_correlation", dense=dense, sparse=sparse)
    (row,), _ = load(experiment.client, experiment.name)
    assert (row.drop_max, row.drop_mean, row.drop_interval) == (None, None, None)
    assert "no relative drop from a dense score that is not above 0" in row.notes


def test_a_correlation_that_may_be_negative_has_no_interval(experiment):
    gold, answers = [1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 4.0, 3.0]
    rows = rows_of("pearson", answers, gold)
    score = correlation(answers, gold)
    experiment.log(dataset="stsb", metric="pearson", dense=score, sparse=score, scores=artifact("pearson", rows, rows))
    (row,), _ = load(experiment.client, experiment.name)
    assert (row.drop_mean, row.drop_interval) == (0, None)
    assert "no interval: the score that it is relative to may be 0 or negative" in row.notes


def test_a_control_has_its_interval_too(experiment):
    log(experiment, "mrpc", "f1", "f1", control="c")
    log(experiment, "mrpc", "f1", "f1", control="c", pattern="dense", worse=0.25)
    rows, _ = load(experiment.client, experiment.name)
    (row,) = [row for row in rows if row.pattern == "4x1"]
    assert row.control is not None
    assert row.control.interval is not None
    assert row.control.interval[0] < row.control.drop_mean < row.control.interval[1]  # pyright: ignore


GOOD = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]  # F1 of 2 / 3


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("f1", GOOD, None),
        ("unheard_of", GOOD, "damaged"),
        (["f1"], GOOD, "damaged"),
        (None, GOOD, "damaged"),
        ("f1", GOOD[:1], "damaged"),
        ("f1", [GOOD[0], GOOD[1][:2]], "damaged"),
        ("f1", [[1.0, 0.0], [0.0, 1.0]], "damaged"),
        ("macro_f1", [[1.0, 0.0], [0.0, 1.0]], "damaged"),
        ("f1", [[], []], "damaged"),
        ("f1", "ab", "damaged"),
        ("f1", None, "damaged"),
        ("f1", [GOOD[0], [0.0, True, 0.0]], "damaged"),
        ("f1", [GOOD[0], [0.0, float("nan"), 0.0]], "damaged"),
        ("f1", [GOOD[0], [0.0, float("inf"), 0.0]], "damaged"),
        ("f1", [GOOD[0], [0, 10**400, 0]], "damaged"),
        ("f1", [GOOD[0], GOOD[0]], "scores.json and the logged scores do not agree"),
    ],
)
def test_statistics_that_cannot_be_used(experiment, name, rows, reason):
    content = {"id": ["a", "b"], "dense": [], "sparse": [], "statistics": {"name": name, "dense": GOOD, "sparse": rows}}
    experiment.log(dense=2 / 3, sparse=2 / 3, scores=json.dumps(content))
    (row,), _ = load(experiment.client, experiment.name)
    found = [note for note in row.notes if note.startswith("no interval: ")]
    assert row.drop_interval is None
    assert reason in found[0] if reason else found == ["no interval: the score that it is relative to may be 0"]


def test_statistics_are_no_list():
    with pytest.raises(ValueError, match="statistic"):
        intervals.parse({"id": ["a"], "dense": [], "sparse": [], "statistics": []})


def test_seeds_of_different_statistics_are_not_pooled(experiment):
    experiment.log(seed=0, dense=2 / 3, sparse=2 / 3, scores=artifact("f1", GOOD, GOOD))
    experiment.log(seed=1, dense=0.5, sparse=0.5, scores=json.dumps({"id": ["e00", "e01"], "dense": [0, 1],
                                                                      "sparse": [0, 1]}))  # fmt: skip
    (row,), _ = load(experiment.client, experiment.name)
    assert "no interval: its seeds logged different statistics" in row.notes


def test_the_published_rows_of_text_classification_are_set_beside_ours(experiment):
    log(experiment, "mrpc", "f1", "f1")
    log(experiment, "mrpc", "f1", "f1", pattern="2:4", model="distilbert")
    log(experiment, "mrpc", "matthews_correlation", "matthews_correlation", pattern="2:4")
    experiment.log(dataset="sst2", metric="accuracy", group="s", scores=([1.0, 0.5], [0.5, 0.5]))
    rows, _ = load(experiment.client, experiment.name, compare=True)
    ours = {(row.model, row.dataset, row.pattern, row.metric): row.published for row in rows if row.runs}
    assert {key: entry and (entry.metric, entry.dense_max, entry.sparse_max) for key, entry in ours.items()} == {
        ("bert-mini", "mrpc", "4x1", "f1"): ("f1", 0.8752, 0.8722),
        ("distilbert", "mrpc", "2:4", "f1"): ("f1", 0.9026, 0.9088),
        ("bert-mini", "mrpc", "2:4", "matthews_correlation"): None,
        ("bert-mini", "sst2", "4x1", "accuracy"): ("accuracy", 0.8761, 0.8692),
    }
    lacking = {(row.model, row.dataset, row.pattern, row.metric) for row in rows if not row.runs}
    assert len(lacking) == 14 - 3
    assert ("bert-mini", "mrpc", "2:4", "f1") in lacking


# --- how metrics are written -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "written", "title"), [
    ("f1", "F1", "F1"),
    ("macro_f1", "macro F1", "Macro F1"),
    ("accuracy", "accuracy", "Accuracy"),
    ("exact_match", "exact match", "Exact match"),
    ("matthews_correlation", "Matthews correlation", "Matthews correlation"),
    ("pearson", "Pearson correlation", "Pearson correlation"),
    ("spearmanr", "Spearman correlation", "Spearman correlation"),
    ("accuracy_validation_mismatched", "accuracy validation mismatched", "Accuracy validation mismatched"),
    ("f1_test", "F1 test", "F1 test"),
    ("has_answer_f1", "has answer F1", "Has answer F1"),
    ("best_f1_threshold", "best F1 threshold", "Best F1 threshold"),
    ("f1ne", "f1ne", "F1ne"),
])  # fmt: skip
def test_metrics_are_written_as_people_do(metric, written, title):
    assert (columns.written(metric), columns.title(metric)) == (written, title)


def test_each_metric_has_its_picture(experiment):
    log(experiment, "mrpc", "f1", "f1")
    experiment.log(dataset="mrpc", metric="matthews_correlation", group="n", dense=0.4, sparse=-0.1)
    runs, _ = select(fetch(experiment.client, experiment.name))
    compared = tradeoff.comparisons(pool(runs))
    assert list(compared) == [("bert-mini", "mrpc", "f1"), ("bert-mini", "mrpc", "matthews_correlation")]
    axes = [tradeoff.score_against_sparsity(group).axes[0] for group in compared.values()]
    assert [each.get_ylabel() for each in axes] == [
        "F1, mean over seeds (fraction)",
        "Matthews correlation",
    ]
    low, high = axes[1].get_ylim()
    assert low < -0.1 < 0.4 < high


def test_drops_of_correlations_are_told(experiment):
    everything(experiment)
    rows, _ = load(experiment.client, experiment.name)
    noted = [row.dataset for row in rows if any("a correlation, which is 0 at chance" in note for note in row.notes)]
    assert noted == ["cola", "stsb"]

"""The rows with their intervals, recomputed from what MLflow returns by code that shares nothing with `results`."""

import json
import random
from statistics import fmean

import pytest

from results import bootstrap, intervals
from results.filters import Filters
from results.load import load

DENSE = {seed: [random.Random(seed).uniform(0.5, 1) for _ in range(40)] for seed in (0, 1, 2)}
SPARSE = {
    seed: [random.Random(seed * 7 + at).uniform(0.7, 1) * s for at, s in enumerate(DENSE[seed])] for seed in DENSE
}
CONTROL = {seed: [min(1, 1.02 * score + 0.01 * seed) for score in DENSE[seed]] for seed in DENSE}


def raw(client, run_id):
    """The scores by example, as they lie in the store: {id: (dense, sparse)}."""
    folder = client.get_run(run_id).info.artifact_uri.removeprefix("file://")
    with open(f"{folder}/scores.json", encoding="utf-8") as file:
        content = json.load(file)
    return {key: pair for key, *pair in zip(content["id"], content["dense"], content["sparse"], strict=True)}


def by_hand(below, above, paired, resamples=3000, relative=True):
    """95 % interval of the drop, or of the difference, from `below` to `above` in a naive loop.

    They are lists by seed of scores by id.
    """
    generator, ids, drops = random.Random(11), list(below[0]), []
    for _ in range(resamples):
        drawn = generator.choices(ids, k=len(ids))
        over = generator.choices(range(len(above)), k=len(above))
        under = over if paired else generator.choices(range(len(below)), k=len(below))
        low = fmean(below[seed][key] for seed in under for key in drawn)
        change = fmean(above[seed][key] for seed in over for key in drawn) - low
        drops.append(change / low if relative else change)
    drops.sort()
    return [drops[round(0.025 * resamples)], drops[round(0.975 * resamples) - 1]]


def near(interval):
    return pytest.approx(interval, abs=0.1 * (interval[1] - interval[0]))


def find(experiment, pattern="4x1", **options):
    rows, _ = load(experiment.client, experiment.name, **options)
    (row,) = [row for row in rows if row.pattern == pattern]
    return row


def test_rows_are_what_the_store_says(experiment):
    for seed in DENSE:
        experiment.log(seed=seed, control="c", budget="b", scores=(DENSE[seed], SPARSE[seed]))
    for seed in (0, 1, 2):
        experiment.log(seed=seed, group="d", pattern="dense", control="c", budget="b",
                       scores=(DENSE[seed], CONTROL[seed]))  # fmt: skip
    for seed in (1, 2):
        experiment.log(seed=seed, group="p", pattern="dense", control="p", budget="b", params={"distill": "none"},
                       scores=(DENSE[seed], DENSE[seed]))  # fmt: skip
    row = find(experiment)
    assert (row.control, row.plain) != (None, None)
    client = experiment.client
    ours = [raw(client, run) for run in row.runs]
    dense, sparse = ([{key: pair[at] for key, pair in each.items()} for each in ours] for at in (0, 1))
    logged = [client.get_run(run).data.metrics for run in row.runs]
    means = [fmean(each[name] for each in logged) for name in ("dense/f1", "sparse/f1")]
    maxima = [max(each[name] for each in logged) for name in ("dense/f1", "sparse/f1")]
    assert [row.dense_mean, row.sparse_mean, row.dense_max, row.sparse_max] == pytest.approx([*means, *maxima])
    assert row.drop_mean == pytest.approx(means[1] / means[0] - 1)
    assert row.drop_max == pytest.approx(maxima[1] / maxima[0] - 1)
    assert row.drop_interval == near(by_hand(dense, sparse, paired=True))
    assert row.change_interval == near(by_hand(dense, sparse, paired=True, relative=False))
    for control, seeds, paired in ((row.control, [0, 1, 2], True), (row.plain, [1, 2], False)):
        assert control is not None
        assert control.seeds == seeds
        rival = [{key: pair[1] for key, pair in raw(client, run).items()} for run in control.runs]
        scored = [client.get_run(run).data.metrics["sparse/f1"] for run in control.runs]
        assert (control.mean, control.max) == pytest.approx((fmean(scored), max(scored)))
        assert control.drop_mean == pytest.approx(means[1] / fmean(scored) - 1)
        assert control.drop_max == pytest.approx(maxima[1] / max(scored) - 1)
        assert control.interval == near(by_hand(rival, sparse, paired))
        assert control.change_interval == near(by_hand(rival, sparse, paired, relative=False))


def test_identical_scores(experiment):
    for seed in DENSE:
        experiment.log(seed=seed, control="c", scores=(DENSE[seed], DENSE[seed]))
        experiment.log(seed=seed, group="d", pattern="dense", control="c", scores=(DENSE[seed], DENSE[seed]))
    row = find(experiment)
    assert row.control is not None
    assert row.drop_interval == row.control.interval == [0.0, 0.0]


def test_the_order_of_the_examples_does_not_matter(experiment):
    for seed in (0, 1):
        turned = {"id": list("cab"), "dense": [0.9, 0.5, 0.7], "sparse": [0.8, 0.6, 0.4]}
        straight = {"id": list("abc"), "dense": [0.5, 0.7, 0.9], "sparse": [0.6, 0.4, 0.8]}
        for group, second in (("t", turned), ("s", straight)):
            content = json.dumps(second if seed else straight)
            experiment.log(seed=seed, group=group, dense=0.7, sparse=0.6, pattern=group, scores=content)
    first, second = find(experiment, "t"), find(experiment, "s")
    assert first.drop_interval == second.drop_interval
    assert first.drop_interval is not None


GOOD = {"id": ["a", "b"], "dense": [0.9, 0.7], "sparse": [0.8, 0.6]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "scores.json is missing or cannot be fetched"),
        ("", "damaged"),
        ("[1, 2", "damaged"),
        ("[" * 100_000, "damaged"),
        ("[]", "damaged"),
        (json.dumps({**GOOD, "sparse": [0.8]}), "damaged"),
        (json.dumps({**GOOD, "sparse": [0.8, None]}), "damaged"),
        (json.dumps({**GOOD, "sparse": [0.8, True]}), "damaged"),
        (json.dumps({**GOOD, "sparse": [0.8, float("nan")]}), "damaged"),
        (json.dumps({**GOOD, "sparse": [80, 60]}), "damaged"),
        (json.dumps({**GOOD, "id": ["a", "a"]}), "damaged"),
        (json.dumps({"id": [], "dense": [], "sparse": []}), "damaged"),
        (json.dumps({**GOOD, "sparse": [0.8, 0.5]}), "scores.json and the logged scores do not agree"),
    ],
)
def test_scores_that_cannot_be_used(experiment, content, reason):
    run = experiment.log(dense=0.8, sparse=0.7, scores=content)
    row = find(experiment)
    assert row.drop_interval is None
    (note,) = [note for note in row.notes if note.startswith("no interval: ")]
    assert reason in note
    if reason == "damaged":
        assert run[:8] in note
    assert row.drop_mean == pytest.approx(-0.125)


def test_a_drop_that_may_be_undefined(experiment):
    experiment.log(scores=([0, 1], [0.5, 0.5]))
    row = find(experiment)
    assert (row.drop_mean, row.drop_interval) == (0, None)
    assert "no interval: the score that it is relative to may be 0" in row.notes


def test_a_damaged_control_costs_its_own_interval(experiment):
    experiment.log(control="c", dense=0.8, sparse=0.7, scores=json.dumps(GOOD))
    experiment.log(control="c", dense=0.8, sparse=0.8, group="d", pattern="dense", scores="{}")
    row = find(experiment)
    assert row.drop_interval is not None
    assert row.control is not None
    assert row.control.interval is None
    (note,) = [note for note in row.notes if note.startswith("no interval")]
    assert note.startswith("no interval against the control: scores.json of run ")


def test_other_examples_are_not_paired(experiment):
    experiment.log(control="c", dense=0.8, sparse=0.7, scores=json.dumps(GOOD))
    other = json.dumps({**GOOD, "id": ["a", "c"]})
    experiment.log(control="c", dense=0.8, sparse=0.7, group="d", pattern="dense", scores=other)
    experiment.log(seed=1, group="e", pattern="2:4", dense=0.8, sparse=0.7, scores=json.dumps(GOOD))
    experiment.log(seed=2, group="e", pattern="2:4", dense=0.8, sparse=0.7, scores=other)
    assert "no interval against the control: it was scored on other examples" in find(experiment).notes
    assert "no interval: its seeds were scored on different examples" in find(experiment, "2:4").notes


def test_only_what_is_shown_is_read(experiment, monkeypatch):
    shown = experiment.log(control="c", dense=0.8, sparse=0.7, scores=json.dumps(GOOD))
    experiment.log(group="e", pattern="2:4", dense=0.8, sparse=0.7, scores=json.dumps(GOOD))
    asked = []
    read = intervals.read
    monkeypatch.setattr(intervals, "read", lambda client, runs, places: asked.extend(runs) or read(client, asked))
    load(experiment.client, experiment.name, Filters(pattern="4x1"))
    assert asked == [shown]
    load(experiment.client, experiment.name, with_intervals=False)
    assert asked == [shown]


def test_rows_without_runs_are_left_alone(experiment):
    rows, _ = load(experiment.client, experiment.name, compare=True)
    assert rows
    assert intervals.add(experiment.client, rows) == rows


def test_the_scores_of_a_run_are_read_and_resampled_once(experiment, monkeypatch):
    """A control of many rows is no exception; what is drawn for one run serves all with as many examples."""
    asked, drawn = [], []
    artifact, draw = intervals.artifact, bootstrap._example_counts
    monkeypatch.setattr(intervals, "artifact", lambda *given: asked.append(given[1]) or artifact(*given))
    monkeypatch.setattr(bootstrap, "_example_counts", lambda *given: drawn.append(given[0]) or draw(*given))
    for seed in DENSE:
        experiment.log(seed=seed, group="d", pattern="dense", control="c", scores=(DENSE[seed], CONTROL[seed]))
        for pattern in ("4x1", "2:4", "1x4"):
            experiment.log(seed=seed, group=pattern, pattern=pattern, control="c", scores=(DENSE[seed], SPARSE[seed]))
    rows, _ = load(experiment.client, experiment.name)
    assert [row.control is not None and row.control.interval is not None for row in rows] == [False, True, True, True]
    assert len(asked) == len(set(asked)) == 12
    assert drawn == [40]


def test_the_parts_in_which_runs_are_read_have_no_effect(experiment, monkeypatch):
    for seed in DENSE:
        experiment.log(seed=seed, control="c", scores=(DENSE[seed], SPARSE[seed]))
        experiment.log(seed=seed, group="d", pattern="dense", control="c", scores=(DENSE[seed], CONTROL[seed]))
    whole = load(experiment.client, experiment.name)[0]
    monkeypatch.setattr(intervals, "_TOGETHER", 1)
    assert load(experiment.client, experiment.name)[0] == whole

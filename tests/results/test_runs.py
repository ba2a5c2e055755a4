import math

import pytest

from results import columns
from results.rows import pool
from results.runs import REASONS, REPEATED, STATUS_REASONS, UnknownExperiment, fetch, natural, select


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("unfinished", {"status": "RUNNING"}),
        ("unfinished", {"status": "SCHEDULED"}),
        ("failed", {"status": "FAILED"}),
        ("killed", {"status": "KILLED"}),
        ("unverified", {"verified": "false"}),
        ("unverified", {"verified": None}),
        ("incomplete", {"dense": None}),
        ("incomplete", {"sparse": None}),
        ("incomplete", {"sparse": math.nan}),
        ("incomplete", {"metric": None}),
        ("incomplete", {"identity": None}),
        ("incomplete", {"pattern": None}),
        ("incomplete", {"seed": None}),
        ("incomplete", {"seed": "many"}),
        (None, {"kind": columns.DENSE_ONLY}),
        (None, {"kind": columns.SWEEP}),
        (None, {"kind": columns.REPRODUCTION}),
        (None, {"kind": "evaluation"}),
        (None, {"kind": None}),
    ],
)
def test_what_stays_out(experiment, reason, change, rows_of):
    shown = experiment.log(seed=1, group="shown")
    experiment.log(**{"seed": 2, **change})
    rows, left_out = rows_of(experiment)
    assert [row.runs for row in rows] == [[shown]]
    assert left_out == ({reason: 1} if reason else {})


def test_every_reason_has_a_place_in_the_footnote():
    assert set(STATUS_REASONS.values()) | {"unfinished", "unverified", "incomplete"} == set(REASONS)


def test_children_of_a_sweep_are_ordinary_runs(experiment, rows_of):
    parent = experiment.log(kind=columns.SWEEP, dense=None, sparse=None, seed=None)
    children = [experiment.log(seed=seed, parent=parent) for seed in (0, 1)]
    (row,), left_out = rows_of(experiment)
    assert row.runs == children
    assert not left_out


def test_deleted_runs_are_gone(experiment, rows_of):
    experiment.client.delete_run(experiment.log())
    assert rows_of(experiment) == ([], {})


def test_newest_of_repeats_counts(experiment, rows_of):
    experiment.log(identity="i", end_time=2_000, sparse=0.1)
    newest = experiment.log(identity="i", end_time=3_000, sparse=0.2)
    experiment.log(identity="i", end_time=1_000, sparse=0.3)
    experiment.log(identity="i", end_time=4_000, sparse=0.4, verified="false")
    experiment.log(identity="i", end_time=5_000, sparse=0.5, status="FAILED")
    (row,), left_out = rows_of(experiment)
    assert (row.runs, row.sparse_mean) == ([newest], 0.2)
    assert left_out == {REPEATED: 2, "unverified": 1, "failed": 1}


@pytest.mark.parametrize("page_size", [3, 7])
def test_all_pages_are_read(experiment, page_size):
    ids = {experiment.log(seed=seed) for seed in range(7)}
    logged = fetch(experiment.client, experiment.name, page_size=page_size)
    assert len(logged) == 7
    assert {run.info.run_id for run in logged} == ids


def test_more_runs_than_mlflow_returns_at_once(entry):
    class Page(list):
        token = ""

    class Client:
        """Answers as MLflow does, in at most 1000 runs a page."""

        def search_experiments(self, page_token=None):
            page = Page([type("Experiment", (), {"name": f"e{page_token}", "experiment_id": str(page_token)})])
            page.token = "2" if page_token is None else ""
            return page

        def search_runs(self, ids, filter_string, max_results, page_token):
            assert ids == ["None", "2"]
            assert columns.PRUNED in filter_string
            assert max_results <= 1000
            start = int(page_token or 0)
            page = Page(entry(str(at), seed=at) for at in range(start, min(start + max_results, 2500)))
            page.token = str(start + max_results) if start + max_results < 2500 else ""
            return page

    logged = fetch(Client())  # pyright: ignore[reportArgumentType]
    (row,) = pool(select(logged)[0])
    assert row.seeds == list(range(2500))


def test_all_active_experiments_or_one(experiment, second_experiment):
    first, second = experiment.log(seed=0), second_experiment.log(seed=1)
    read = {run.info.run_id for run in fetch(experiment.client)}
    assert {first, second} == read
    assert [run.info.run_id for run in fetch(experiment.client, second_experiment.name)] == [second]


def test_unknown_experiment_names_those_that_exist(experiment, second_experiment):
    with pytest.raises(UnknownExperiment) as error:
        fetch(experiment.client, "nowhere")
    assert all(name in str(error.value) for name in ("nowhere", experiment.name, second_experiment.name))


def test_a_deleted_experiment_is_unknown(experiment):
    experiment.client.delete_experiment(experiment.id)
    try:
        with pytest.raises(UnknownExperiment):
            fetch(experiment.client, experiment.name)
    finally:
        experiment.client.restore_experiment(experiment.id)


@pytest.mark.parametrize(
    "texts", [["dense", "2:4", "4x1", "16x1"], ["a2", "a10", "b"], ["", "1", "a"], ["0.002", "0.01"], ["5e-5", "1e-4"]]
)
def test_natural_order(texts):
    shuffled = texts[::-1]
    assert sorted(shuffled, key=natural) == texts

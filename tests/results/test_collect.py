import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import Metric, Param, RunData, RunInfo, RunTag
from mlflow.entities import Run as LoggedRun

from results import collect, columns, table


def rows_of(experiment):
    runs, left_out = collect.select(collect.fetch(experiment.client, experiment.name))
    return collect.pool(runs), left_out


def test_published_row(published):
    (row,), left_out = rows_of(published)
    assert (row.model, row.dataset, row.pattern, row.metric) == ("bert-mini", "squad", "4x1", "f1")
    assert row.seeds == [0, 1]
    assert row.differs == {}
    assert not left_out
    assert row.ratio == pytest.approx(0.7993)
    assert (row.dense_mean, row.dense_max) == pytest.approx((0.7662, 0.7687))
    assert (row.sparse_mean, row.sparse_max) == pytest.approx((0.7617, 0.7627))
    assert row.drop_max == pytest.approx(-0.0060 / 0.7687)  # -0.78 %
    assert row.drop_mean == pytest.approx(-0.0045 / 0.7662)  # -0.59 %
    assert f"{row.drop_max:.4f} {row.drop_mean:.4f}" == "-0.0078 -0.0059"


def test_gain_and_ratio_are_pooled(experiment):
    experiment.log(seed=3, pattern="2:4", dense=0.5, sparse=0.6, ratio=0.4)
    experiment.log(seed=10, pattern="2:4", dense=0.25, sparse=0.3, ratio=0.5)
    experiment.log(seed=2, pattern="2:4", dense=0.75, sparse=0.9, ratio=0.6)
    (row,), _ = rows_of(experiment)
    assert row.seeds == [2, 3, 10]  # as numbers
    assert row.ratio == pytest.approx(0.5)
    assert (row.dense_mean, row.dense_max) == pytest.approx((0.5, 0.75))
    assert (row.sparse_mean, row.sparse_max) == pytest.approx((0.6, 0.9))
    assert (row.drop_max, row.drop_mean) == pytest.approx((0.2, 0.2))


def test_runs_are_named_in_the_order_of_the_seeds(experiment):
    ids = {seed: experiment.log(seed=seed) for seed in (2, 0, 1)}
    (row,), _ = rows_of(experiment)
    assert row.runs == [ids[0], ids[1], ids[2]]


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
        (None, {"kind": columns.EVALUATION}),
        (None, {"kind": None}),
    ],
)
def test_what_stays_out(experiment, reason, change):
    shown = experiment.log(seed=1, group="shown")
    experiment.log(**{"seed": 2, **change})
    rows, left_out = rows_of(experiment)
    assert [row.runs for row in rows] == [[shown]]
    assert left_out == ({reason: 1} if reason else {})


def test_every_reason_has_a_place_in_the_footnote():
    assert set(collect.STATUS_REASONS.values()) | {"unfinished", "unverified", "incomplete"} == set(collect.REASONS)


def test_children_of_a_sweep_are_ordinary_runs(experiment):
    parent = experiment.log(kind=columns.SWEEP, dense=None, sparse=None, seed=None)
    children = [experiment.log(seed=seed, parent=parent) for seed in (0, 1)]
    (row,), left_out = rows_of(experiment)
    assert row.runs == children
    assert not left_out


def test_deleted_runs_are_gone(experiment):
    experiment.client.delete_run(experiment.log())
    assert rows_of(experiment) == ([], {})


def test_newest_of_repeats_counts(experiment):
    experiment.log(identity="i", end_time=2_000, sparse=0.1)
    newest = experiment.log(identity="i", end_time=3_000, sparse=0.2)
    experiment.log(identity="i", end_time=1_000, sparse=0.3)
    experiment.log(identity="i", end_time=4_000, sparse=0.4, verified="false")
    experiment.log(identity="i", end_time=5_000, sparse=0.5, status="FAILED")
    (row,), left_out = rows_of(experiment)
    assert (row.runs, row.sparse_mean) == ([newest], 0.2)
    assert left_out == {collect.REPEATED: 2, "unverified": 1, "failed": 1}


@pytest.mark.parametrize("page_size", [3, 7])
def test_all_pages_are_read(experiment, page_size):
    ids = {experiment.log(seed=seed) for seed in range(7)}
    logged = collect.fetch(experiment.client, experiment.name, page_size=page_size)
    assert len(logged) == 7
    assert {run.info.run_id for run in logged} == ids


def test_more_runs_than_mlflow_returns_at_once():
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

    logged = collect.fetch(Client())  # pyright: ignore[reportArgumentType]
    (row,) = collect.pool(collect.select(logged)[0])
    assert row.seeds == list(range(2500))


def test_all_active_experiments_or_one(experiment, second_experiment):
    first, second = experiment.log(seed=0), second_experiment.log(seed=1)
    read = {run.info.run_id for run in collect.fetch(experiment.client)}
    assert {first, second} == read
    assert [run.info.run_id for run in collect.fetch(experiment.client, second_experiment.name)] == [second]


def test_unknown_experiment_names_those_that_exist(experiment, second_experiment):
    with pytest.raises(collect.UnknownExperiment) as error:
        collect.fetch(experiment.client, "nowhere")
    assert all(name in str(error.value) for name in ("nowhere", experiment.name, second_experiment.name))


def test_a_deleted_experiment_is_unknown(experiment):
    experiment.client.delete_experiment(experiment.id)
    try:
        with pytest.raises(collect.UnknownExperiment):
            collect.fetch(experiment.client, experiment.name)
    finally:
        experiment.client.restore_experiment(experiment.id)


def test_differs_names_what_tells_rows_apart(experiment):
    shared = {"epochs": 10}
    experiment.log(group="a", params={**shared, "lr": "0.01", "temperature": "2"})
    experiment.log(group="b", params={**shared, "lr": "0.002"})
    experiment.log(group="c", pattern="2:4", params={"epochs": 3, "lr": "0.3"})  # told apart by its label
    rows, _ = rows_of(experiment)
    assert [(row.pattern, row.differs) for row in rows] == [
        ("2:4", {}),
        ("4x1", {"lr": "0.002", "temperature": "(default)"}),
        ("4x1", {"lr": "0.01", "temperature": "2"}),
    ]


def test_differs_shows_what_should_not_be_pooled(experiment):
    experiment.log(group="a", seed=0, params={"lr": "10"})
    experiment.log(group="a", seed=1, params={"lr": "9"})
    experiment.log(group="a", seed=2)
    experiment.log(group="b", params={"lr": "9"})
    rows, _ = rows_of(experiment)
    assert [row.differs for row in rows] == [{"lr": "9"}, {"lr": "9|10|(default)"}]


def test_groups_are_not_pooled_over_metrics(experiment):
    experiment.log(seed=0, metric="f1", dense=0.5)
    experiment.log(seed=1, metric="exact_match", dense=0.25)
    rows, _ = rows_of(experiment)
    assert [(row.metric, row.dense_mean) for row in rows] == [("exact_match", 0.25), ("f1", 0.5)]


def test_order_is_by_dataset_model_and_pattern(experiment):
    labels = [
        *[("mrpc", "bert-mini", pattern) for pattern in ("dense", "2:4", "4x1", "16x1")],
        *[("squad", model, "4x1") for model in ("bert-2", "bert-10", "distilbert")],
    ]
    for dataset, model, pattern in reversed(labels):
        experiment.log(dataset=dataset, model=model, pattern=pattern, group=dataset + model + pattern)
    rows, _ = rows_of(experiment)
    assert [(row.dataset, row.model, row.pattern) for row in rows] == labels


def test_undefined_drop_and_missing_ratio(experiment):
    experiment.log(seed=0, dense=0.0, sparse=0.5, ratio=None)
    experiment.log(seed=1, dense=0.0, sparse=0.5)
    (row,), _ = rows_of(experiment)
    assert (row.drop_max, row.drop_mean, row.ratio) == (None, None, None)


def test_total_loss_is_defined():
    assert collect.relative_drop(0.5, 0.0) == -1.0


@pytest.mark.parametrize(
    "texts", [["dense", "2:4", "4x1", "16x1"], ["a2", "a10", "b"], ["", "1", "a"], ["0.002", "0.01"], ["5e-5", "1e-4"]]
)
def test_natural_order(texts):
    shuffled = texts[::-1]
    assert sorted(shuffled, key=collect.natural) == texts


def entry(run_id, *, seed=0, group="g", status="FINISHED", verified="true", end=0, dense=0.5, sparse=0.25, **params):
    """A run as MLflow's client returns it, without a store."""
    labels = {"model": "m", "dataset": "d", "pattern": "4x1", "seed": str(seed)} | params
    tags = {
        **{columns.KIND: columns.PRUNED, columns.IDENTITY: f"{group}-{seed}", columns.GROUP: group},
        **{columns.METRIC: "f1", columns.VERIFIED: verified},
    }
    return LoggedRun(
        RunInfo(run_id, "0", "user", status, start_time=0, end_time=end, lifecycle_stage="active"),
        RunData(
            metrics=[Metric("dense/f1", dense, 0, 0), Metric("sparse/f1", sparse, 0, 0)],
            params=[Param(key, value) for key, value in labels.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        ),
    )


scores = st.floats(0, 1)
drawn_runs = st.lists(
    st.fixed_dictionaries(
        {
            "seed": st.integers(0, 3),
            "group": st.sampled_from("abc"),
            "status": st.sampled_from(["FINISHED", "FINISHED", "FINISHED", "FAILED", "RUNNING"]),
            "verified": st.sampled_from(["true", "true", "false"]),
            "end": st.integers(0, 2),
            "dense": scores,
            "sparse": scores,
            "pattern": st.sampled_from(["4x1", "2:4", "dense"]),
            "lr": st.sampled_from(["1", "2"]),
        }
    ),
    max_size=12,
)


@given(data=st.data(), drawn=drawn_runs)
def test_the_order_of_the_runs_does_not_matter(data, drawn):
    logged = [entry(f"run-{at}", **run) for at, run in enumerate(drawn)]
    runs, left_out = collect.select(logged)
    again, left_out_again = collect.select(data.draw(st.permutations(logged)))
    rows = collect.pool(runs)
    assert rows == collect.pool(again)
    assert left_out == left_out_again
    assert table.terminal(rows) == table.terminal(collect.pool(again))


@given(drawn=drawn_runs)
def test_every_run_is_shown_once_or_counted(drawn):
    runs, left_out = collect.select(entry(f"run-{at}", **run) for at, run in enumerate(drawn))
    rows = collect.pool(runs)
    shown = [run_id for row in rows for run_id in row.runs]
    assert len(shown) == len(set(shown))
    assert len(shown) + left_out.total() == len(drawn)
    for row in rows:
        for mean, maximum in ((row.dense_mean, row.dense_max), (row.sparse_mean, row.sparse_max)):
            assert mean is not None
            assert maximum is not None
            assert mean <= maximum * (1 + 1e-12)
        assert len(row.seeds) == len(set(row.seeds))
        assert row.seeds == sorted(row.seeds)

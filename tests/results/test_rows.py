import pytest
from hypothesis import given
from hypothesis import strategies as st

from results import columns
from results.formats import terminal
from results.load import load
from results.rows import pool
from results.runs import select


def test_published_row(published, rows_of):
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


def test_gain_and_ratio_are_pooled(experiment, rows_of):
    experiment.log(seed=3, pattern="2:4", dense=0.5, sparse=0.6, ratio=0.4)
    experiment.log(seed=10, pattern="2:4", dense=0.25, sparse=0.3, ratio=0.5)
    experiment.log(seed=2, pattern="2:4", dense=0.75, sparse=0.9, ratio=0.6)
    (row,), _ = rows_of(experiment)
    assert row.seeds == [2, 3, 10]  # as numbers
    assert row.ratio == pytest.approx(0.5)
    assert (row.dense_mean, row.dense_max) == pytest.approx((0.5, 0.75))
    assert (row.sparse_mean, row.sparse_max) == pytest.approx((0.6, 0.9))
    assert (row.drop_max, row.drop_mean) == pytest.approx((0.2, 0.2))


def test_runs_are_named_in_the_order_of_the_seeds(experiment, rows_of):
    ids = {seed: experiment.log(seed=seed) for seed in (2, 0, 1)}
    (row,), _ = rows_of(experiment)
    assert row.runs == [ids[0], ids[1], ids[2]]


def test_differs_names_what_tells_rows_apart(experiment, rows_of):
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


def test_differs_leaves_out_what_follows_from_a_choice(experiment, rows_of):
    short = {"schedule": "short", "schedule.decay": "cubic"}
    experiment.log(group="a", params={**short, "schedule.start": "10%"})
    experiment.log(group="b", params={**short, "schedule.start": "0"})
    experiment.log(group="c", params={"schedule": "one_shot", "schedule.start": "10%"})
    rows, _ = rows_of(experiment)
    assert [row.differs for row in rows] == [
        {"schedule": "one_shot", "schedule.start": "10%"},
        {"schedule": "short", "schedule.start": "0"},
        {"schedule": "short", "schedule.start": "10%"},
    ]


def test_differs_shows_what_should_not_be_pooled(experiment, rows_of):
    experiment.log(group="a", seed=0, params={"lr": "10"})
    experiment.log(group="a", seed=1, params={"lr": "9"})
    experiment.log(group="a", seed=2)
    experiment.log(group="b", params={"lr": "9"})
    rows, _ = rows_of(experiment)
    assert [row.differs for row in rows] == [{"lr": "9"}, {"lr": "9|10|(default)"}]


def test_groups_are_not_pooled_over_metrics(experiment, rows_of):
    experiment.log(seed=0, metric="f1", dense=0.5)
    experiment.log(seed=1, metric="exact_match", dense=0.25)
    rows, _ = rows_of(experiment)
    assert [(row.metric, row.dense_mean) for row in rows] == [("exact_match", 0.25), ("f1", 0.5)]


def test_order_is_by_dataset_model_and_pattern(experiment, rows_of):
    labels = [
        *[("mrpc", "bert-mini", pattern) for pattern in ("dense", "2:4", "4x1", "16x1")],
        *[("squad", model, "4x1") for model in ("bert-2", "bert-10", "distilbert")],
    ]
    for dataset, model, pattern in reversed(labels):
        experiment.log(dataset=dataset, model=model, pattern=pattern, group=dataset + model + pattern)
    rows, _ = rows_of(experiment)
    assert [(row.dataset, row.model, row.pattern) for row in rows] == labels


def test_undefined_drop_and_missing_ratio(experiment, rows_of):
    experiment.log(seed=0, dense=0.0, sparse=0.5, ratio=None)
    experiment.log(seed=1, dense=0.0, sparse=0.5)
    (row,), _ = rows_of(experiment)
    assert (row.drop_max, row.drop_mean, row.ratio) == (None, None, None)


def test_total_loss_is_defined():
    assert columns.relative_drop(0.5, 0.0) == -1.0


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
def test_the_order_of_the_runs_does_not_matter(data, drawn, entry):
    logged = [entry(f"run-{at}", **run) for at, run in enumerate(drawn)]
    runs, left_out = select(logged)
    again, left_out_again = select(data.draw(st.permutations(logged)))
    rows = pool(runs)
    assert rows == pool(again)
    assert left_out == left_out_again
    assert terminal(rows) == terminal(pool(again))


@given(drawn=drawn_runs)
def test_every_run_is_shown_once_or_counted(drawn, entry):
    runs, left_out = select(entry(f"run-{at}", **run) for at, run in enumerate(drawn))
    rows = pool(runs)
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


def test_sizes_and_counts_are_pooled(experiment):
    counts = {columns.TRAIN_EXAMPLES: 10, columns.OFFICIAL_TRAIN: 20}
    sizes = {columns.BYTES: 100, columns.MACS_DENSE: 50, columns.MACS_CUT: 20, columns.BYTES_CUT: 60,
             columns.PARAMETERS_CUT: 15}  # fmt: skip
    for seed in (0, 1):
        experiment.log(seed=seed, dense_model=f"m{seed // 2}", counts=counts,
                       metrics={**sizes, columns.COMPRESSED: 40 + 20 * seed, "sparse/exact_match": 0.5 + 0.1 * seed,
                                "dense/exact_match": 0.7, "dense/only_once": 1.0 if seed else None},
                       params={"train.precision": ["bf16", "float32"][seed]})  # fmt: skip
    (row,), _ = load(experiment.client, experiment.name)
    assert (row.size_bytes, row.compressed_bytes, row.macs_dense, row.macs_sparse) == (100, 50, 50, None)
    assert (row.bytes_cut, row.parameters_cut, row.macs_cut) == (60, 15, 20)
    assert (row.train_examples, row.evaluation_examples, row.official_train) == (10, None, 20)
    assert (row.dense_models, row.precision, row.hidden_dropout) == (1, "bf16|float32", None)
    assert row.sparse_others == pytest.approx({"exact_match": 0.55})
    assert row.dense_others == pytest.approx({"exact_match": 0.7})


def test_runs_with_labels_and_scores_only_are_shown(published):
    (row,) = load(published.client, published.name)[0]
    lacking = ("control", "plain", "size_bytes", "macs_sparse", "dense_models", "official_train", "drop_interval")
    assert [getattr(row, name) for name in lacking] == [None] * len(lacking)
    assert (row.sparse_others, row.dense_others) == ({}, {})

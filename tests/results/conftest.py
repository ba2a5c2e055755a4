"""One MLflow store for all tests of `results`: its tables take seconds to make, so each test gets an experiment."""

import itertools
import json

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunData, RunInfo, RunTag
from mlflow.entities import Run as LoggedRun

from results import columns
from results.rows import pool
from results.runs import fetch, select


class Experiment:
    """An experiment of the store, into which a test logs runs as `runner` does."""

    numbers = itertools.count()

    def __init__(self, uri, client, folder):
        self.uri, self.client, self.name = uri, client, f"experiment-{next(self.numbers)}"
        self.id = client.create_experiment(self.name, artifact_location=(folder / self.name).as_uri())

    def log(self, *, dense=0.8, sparse=0.7, status="FINISHED", parent=None, end_time=None, params=None, metrics=None,
            scores=None, counts=None, **other):  # fmt: skip
        """One run; `other` holds labels, seed, ratio, metric and the tags by the last word of their name. None leaves
        a value out. `metrics` are others than the main ones, `counts` the tags "examples.train" and the like, `scores`
        the artifact: (dense, sparse), each a list by example, which are the main metric as well; or text, logged as it
        is. Returns the run's id."""
        given = {
            **{"model": "bert-mini", "dataset": "squad", "pattern": "4x1", "seed": 0, "ratio": 0.8, "metric": "f1"},
            **{"kind": columns.PRUNED, "group": "g", "verified": "true"},
            **{"control": None, "budget": None, "dense_model": None},
            **other,
        }
        given.setdefault("identity", f"{given['group']}-{given['seed']}")
        named = ("kind", "identity", "group", "metric", "verified", "control", "budget")
        tags = {f"prune_distill.{key}": given[key] for key in named} | {
            key: str(n) for key, n in (counts or {}).items()
        }
        tags |= {columns.DENSE_MODEL: given["dense_model"], "mlflow.parentRunId": parent}
        labels = {key: given[key] for key in ("model", "dataset", "pattern", "seed")}
        text = scores
        if isinstance(scores, tuple):
            dense, sparse = (sum(each) / len(each) for each in scores)
            ids = [f"q{at}" for at in range(len(scores[0]))]
            text = json.dumps({"id": ids, "dense": scores[0], "sparse": scores[1]})
        main = {f"dense/{given['metric']}": dense, f"sparse/{given['metric']}": sparse, columns.RATIO: given["ratio"]}
        logged = main | (metrics or {})
        run = self.client.create_run(self.id, tags={key: value for key, value in tags.items() if value is not None})
        self.client.log_batch(
            run.info.run_id,
            metrics=[Metric(key, value, 0, 0) for key, value in logged.items() if value is not None],
            params=[Param(k, str(v)) for k, v in (labels | (params or {})).items() if v is not None],
            tags=[RunTag("mlflow.source.name", "test")],
        )
        if text is not None:
            self.client.log_text(run.info.run_id, text, columns.SCORES)
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status, end_time=end_time)
        return run.info.run_id


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The URI of a migrated sqlite store, its client and the folder of its artifacts."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/runs.db"
    return uri, MlflowClient(tracking_uri=uri), folder


@pytest.fixture
def experiment(store):
    """A fresh experiment, deleted afterwards so that no test sees another's runs."""
    made = Experiment(*store)
    yield made
    made.client.delete_experiment(made.id)


@pytest.fixture(scope="module")
def shared_experiment(store):
    """One for tests that change nothing of what it holds."""
    made = Experiment(*store)
    yield made
    made.client.delete_experiment(made.id)


@pytest.fixture
def second_experiment(store):
    """Another one."""
    made = Experiment(*store)
    yield made
    made.client.delete_experiment(made.id)


@pytest.fixture
def published(experiment):
    """The row Bert-mini 4x1 of the published table: two seeds with its means and maxima."""
    # mean = (max + other) / 2, so other = 2 * mean - max
    experiment.log(seed=1, dense=0.7687, sparse=0.7627, ratio=0.7993)
    experiment.log(seed=0, dense=0.7637, sparse=0.7607, ratio=0.7993)
    return experiment


def pooled(experiment):
    """The rows of all runs of an experiment, and how many were left out for which reason."""
    runs, left_out = select(fetch(experiment.client, experiment.name))
    return pool(runs), left_out


@pytest.fixture(scope="session")
def rows_of():
    """The function `pooled`."""
    return pooled


def logged_run(
    run_id, *, seed=0, group="g", status="FINISHED", verified="true", end=0, dense=0.5, sparse=0.25, **params
):
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


@pytest.fixture(scope="session")
def entry():
    """The function `logged_run`."""
    return logged_run

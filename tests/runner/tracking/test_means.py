"""A sweep's run in MLflow: the means of the runs below it."""

import statistics
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from results import columns
from runner import tracking
from runner.tracking import PARENT_VARIABLE, Tracking, means


def child(where: Tracking, name: str, score: float | None, **others: float) -> str:
    tags = {columns.IDENTITY: name, columns.KIND: columns.DENSE_ONLY}
    with tracking.start(where, name, tags) as tracker:
        tracker.metrics({columns.dense("f1"): score, **others} if score is not None else {"train/loss": 1.0})
        assert tracker.run_id is not None
        return tracker.run_id


def metrics(where: Tracking, run: str) -> dict[str, float]:
    client, _ = tracking.connect(where)
    return client.get_run(run).data.metrics


def sweep(where: Tracking, folder: Path) -> Any:
    return tracking.sweep(where, "seed=0,1", "python -m runner -m seed=0,1", "identity", folder)


def test_a_parent_has_the_mean_extremes_and_deviation_of_its_children(where: Tracking, tmp_path: Path) -> None:
    scores = [0.5, 0.75, 0.875]
    with sweep(where, tmp_path) as parent:
        for i, score in enumerate(scores):
            child(where, f"child {i}", score, **{columns.RELATIVE_DROP: -score / 10, "seconds/train": 3.0})
            assert metrics(where, parent.run_id)["dense/f1"] == pytest.approx(statistics.fmean(scores[: i + 1]))
        with suppress(ZeroDivisionError), tracking.start(where, "failed", {}) as failed:
            failed.metrics({"dense/f1": 0.0})
            raise ZeroDivisionError
    child(where, "of no sweep", 0.1)
    found = metrics(where, parent.run_id)
    assert found == pytest.approx({
        "children": 3, "dense/f1": statistics.fmean(scores), "dense/f1/min": 0.5, "dense/f1/max": 0.875,
        "dense/f1/std": statistics.stdev(scores), "relative_drop": -statistics.fmean(scores) / 10,
        "relative_drop/min": -0.0875, "relative_drop/max": -0.05, "relative_drop/std": statistics.stdev(scores) / 10,
    })  # fmt: skip


def test_children_with_other_metrics_are_averaged_over_those_that_have_them() -> None:
    children = [{"dense/f1": 0.5}, {"dense/accuracy": 0.9, "train/loss": 3.0}, {"dense/f1": 0.7}]
    found = means.summary(children)
    assert found["dense/f1"] == pytest.approx(0.6)
    assert found["dense/accuracy"] == found["dense/accuracy/min"] == 0.9
    assert "dense/accuracy/std" not in found
    assert "train/loss" not in found
    assert means.summary([]) == {}


def test_a_job_that_ran_again_counts_once(where: Tracking, tmp_path: Path) -> None:
    with sweep(where, tmp_path) as parent:
        child(where, "a", 0.2)
        child(where, "b", 0.4)
        child(where, "a", 0.6)
    found = metrics(where, parent.run_id)
    assert found["children"] == 2
    assert found["dense/f1"] == pytest.approx(0.5)


def test_a_child_that_saw_fewer_children_and_writes_last_hides_none(where: Tracking, tmp_path: Path) -> None:
    with sweep(where, tmp_path) as parent:
        first = child(where, "a", 0.2)
        child(where, "b", 0.4)
        client, _ = tracking.connect(where)
        late = SimpleNamespace(
            get_run=client.get_run,
            log_batch=client.log_batch,
            search_runs=lambda *given, **named: [
                run for run in client.search_runs(*given, **named) if run.info.run_id == first
            ],
        )
        listed = late.search_runs
        late.search_runs = lambda *given, **named: _Page(listed(*given, **named))
        means.update(late, parent.run_id)  # type: ignore[arg-type]
        assert metrics(where, parent.run_id)["dense/f1"] == pytest.approx(0.3)
        assert metrics(where, parent.run_id)["children"] == 2


class _Page(list):
    token = None


def test_children_that_end_at_once_are_all_counted(where: Tracking, tmp_path: Path) -> None:
    with sweep(where, tmp_path) as parent, ThreadPool(4) as pool:
        pool.map(lambda number: child(where, f"child {number}", number / 10), range(8))
        found = metrics(where, parent.run_id)
    assert found["children"] == 8
    assert found["dense/f1"] == pytest.approx(0.35)


def test_a_parent_that_was_deleted_loses_no_child(
    where: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, "0" * 32)
    run = child(where, "a", 0.5)
    client, _ = tracking.connect(where)
    assert client.get_run(run).info.status == "FINISHED"
    assert "does not get the means of its runs" in caplog.text

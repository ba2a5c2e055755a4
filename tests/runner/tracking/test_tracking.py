"""MLflow by URL, many processes at once, and a server that is away: nothing is lost, nothing is there twice."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from results import columns
from runner import tracking
from runner.system import files
from runner.system.errors import UserError
from runner.tracking import PARENT_VARIABLE, Tracking, operations, outbox, store
from runner.tracking.outbox import Header, Operation, Outbox
from runner.upload import main as upload
from tests.conftest import ROOT, Cli
from tests.mlflow_server import Server


def identity(folder: Path, name: str = "abc") -> dict[str, str]:
    return {columns.IDENTITY: name, columns.FOLDER: str(folder)}


@pytest.mark.slow
def test_a_run_survives_its_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away in the middle, killed while it is away, begun again without it: then uploaded, each thing once."""
    monkeypatch.delenv(PARENT_VARIABLE, raising=False)
    monkeypatch.setattr("runner.upload.PATIENCE", 0.2)
    where, folder = Tracking(uri=server.uri, patience=0.2), tmp_path / "run"

    def work(first: int, last: int, ending: BaseException | None = None, stop_at: int | None = None) -> None:
        with tracking.start(where, "name", identity(folder), resumes=True) as tracker:
            tracker.params({"kept": 1})
            for step in range(first, last):
                if step == stop_at:
                    tracker.flush()
                    server.stop()
                tracker.step("train", step, {"loss": step, "rate": 2 * step})
            tracker.text(f"until {last}", "notes.txt")
            tracker.flush()
            if ending is not None:
                raise ending
            tracker.metrics({"f1": 0.5})

    with pytest.raises(KeyboardInterrupt):
        work(1, 20, KeyboardInterrupt(), stop_at=10)
    kept = Outbox.read(folder)
    assert kept is not None
    assert kept.status() == "KILLED"
    with (folder / outbox.NAME).open("a") as torn:
        torn.write('["metrics", [["train/loss", ')  # a kill in the middle of a line
    work(15, 30)  # from the last checkpoint, still without a server
    assert kept.status() == "FINISHED"
    with pytest.raises(UserError, match=r"does not answer.*nothing is lost"):
        upload([str(tmp_path), "--tracking-uri", server.uri])
    assert tracking.uploaded(where, folder)  # it is finished, wherever it is logged
    server.start()
    upload([str(tmp_path)])
    assert not kept.file.exists()
    assert server.runs() == ["FINISHED"]
    expected = [(step, float(step)) for step in range(1, 30)]
    found = server.metrics()
    assert found["train/loss"] == expected
    assert found["train/rate"] == [(step, 2 * value) for step, value in expected]
    assert found["f1"] == [(0, 0.5)]
    (notes,) = (tmp_path / "server" / "artifacts").rglob("notes.txt")
    assert notes.read_text() == "until 30"
    client, experiment = tracking.connect(where)
    (run,) = client.search_runs([experiment])
    assert tracking.is_finished(where, run.info.run_id)
    assert run.data.params == {"kept": "1"}
    assert "error" not in run.data.tags
    # Nothing waits any more; and a server that has gone does not make a finished run run again.
    upload([str(tmp_path)])
    assert not tracking.uploaded(where, folder)
    server.stop()
    assert tracking.is_finished(where, run.info.run_id)


@pytest.mark.slow
def test_an_upload_that_is_killed_is_repeated_without_doubles(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep's job that began while the server was away: no run of MLflow yet, and none in result.json."""
    monkeypatch.setenv(PARENT_VARIABLE, "the parent")
    where, folder = Tracking(uri=server.uri, patience=0.2), tmp_path / "outputs" / "run"
    server.stop()
    with tracking.start(where, "name", identity(folder), resumes=True) as tracker:
        assert tracker.run_id is None
        for step in range(1, 2000):
            tracker.step("train", step, {"loss": step})
        tracker.metrics({"f1": 0.25})
        files.write_json(folder / "result.json", {"mlflow_run": None})
    server.start()
    apply, attempt, calls = operations.apply, 0, 0

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        """Each attempt ends one call later: in turns before it and after it."""
        nonlocal calls
        calls += 1
        if calls == attempt and attempt % 2:
            raise Killed
        apply(*arguments)  # type: ignore[arg-type]
        if calls == attempt:
            raise Killed

    monkeypatch.setattr(operations, "apply", killed)
    while (folder / outbox.NAME).exists():
        attempt, calls = attempt + 1, 0
        with suppress(Killed):
            upload([str(tmp_path / "outputs")])
    assert attempt >= 4
    assert server.runs() == ["FINISHED"]
    assert server.metrics()["train/loss"] == [(step, float(step)) for step in range(1, 2000)]
    assert server.metrics()["f1"] == [(0, 0.25)]
    result = files.read_json(folder / "result.json")
    assert result is not None
    assert tracking.is_finished(where, result["mlflow_run"])
    client, experiment = tracking.connect(where)
    (run,) = client.search_runs([experiment])
    assert run.data.tags["mlflow.parentRunId"] == "the parent"
    assert run.info.run_name == "name"


@pytest.mark.slow
def test_what_the_server_refuses_is_not_taken_for_its_absence(server: Server, tmp_path: Path) -> None:
    from mlflow.exceptions import MlflowException

    def change() -> None:
        with tracking.start(Tracking(uri=server.uri), "name", identity(tmp_path)) as tracker:
            tracker.params({"a": 1})
            tracker.params({"a": 2})

    with pytest.raises(MlflowException, match=r"(?i)changing param|invalid"):
        change()
    assert server.runs() == ["FAILED"]
    assert not (tmp_path / outbox.NAME).exists()


def test_a_run_is_not_begun_without_its_server(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = cli("-m", "runner", "model=hub", f"model.path={small_model}", "dataset=demo", "dataset.train_examples=32",
               "dataset.eval_examples=8", "prune=false", f"tracking.uri={uri}", "tracking.patience=0.5")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("does not answer") == 2  # that it waits, then the error
    assert f"error: tracking.uri={uri}" in done.stderr
    assert "tracking.uri=sqlite:///mlflow.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert "fine-tuning the dense model" not in done.stderr


@pytest.mark.slow
def test_the_server_stops_in_the_middle_of_a_run(server: Server, cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = ("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", "dataset=demo",
               "dataset.train_examples=64", "dataset.eval_examples=16", "recipe=published",
               "schedule=short", "train.max_steps=120",
               "train.per_device_train_batch_size=8", "train.save_steps=20", "train.logging_steps=3",
               "finetune.max_steps=3", "finetune.per_device_train_batch_size=8", "tracking.patience=0.5")  # fmt: skip
    whole = cli(*command, f"tracking.uri=sqlite:///{tmp_path}/whole.db", "output_dir=whole", "cache_dir=other")
    assert whole.returncode == 0, whole.stderr
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command, f"tracking.uri={server.uri}"], cwd=tmp_path, env=environment,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/*/checkpoints/checkpoint-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.stop()
    _, text = process.communicate(timeout=200)
    assert process.returncode == 0, text
    (folder,) = (file.parent for file in tmp_path.glob("outputs/*/result.json"))
    assert f"python -m runner.upload {folder}" in text
    assert server.runs() == ["RUNNING"]
    again = cli(*command, f"tracking.uri={server.uri}")
    assert "already finished" in again.stderr
    server.start()
    done = cli("-m", "runner.upload", "outputs")
    assert done.returncode == 0, done.stderr
    assert "uploaded as MLflow run" in done.stdout
    assert server.runs() == ["FINISHED"]
    expected: dict[str, list[tuple[int, float]]] = {}
    with sqlite3.connect(tmp_path / "whole.db") as database:
        for key, step, value in database.execute("select key, step, value from metrics order by key, step"):
            expected.setdefault(key, []).append((step, value))
    found = server.metrics()
    assert set(found) == set(expected)
    assert len(expected["train/loss"]) == 40
    for key in expected:
        if not key.startswith(("seconds/", "peak", "tokens_per")):  # all else is the same in each run
            assert found[key] == expected[key]
    table = cli("-m", "results", "--tracking-uri", server.uri, "--format", "json")
    assert [row["pattern"] for row in json.loads(table.stdout)] == ["4x1"]


# --- many processes -----------------------------------------------------------------------------------------

WRITER = """
import sys, time
from pathlib import Path
from runner import tracking
begin = Path("go")
where = tracking.Tracking(uri=f"sqlite:///{Path.cwd()}/mlflow.db")
Path(f"ready-{sys.argv[1]}").touch()
while not begin.exists():
    time.sleep(0.005)
with tracking.start(where, sys.argv[1], {}) as tracker:
    tracker.params({f"p{i}": i for i in range(100)})
    for step in range(1, 401):
        tracker.step("train", step, {"loss": step})
        if step % 20 == 0:
            tracker.flush()
"""


@pytest.mark.slow
def test_eight_processes_on_a_fresh_database_lose_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(i)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        for i in range(8)
    ]
    deadline = time.monotonic() + 200
    while len(list(tmp_path.glob("ready-*"))) < 8:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (tmp_path / "go").touch()
    for writer in writers:
        _, text = writer.communicate(timeout=250)
        assert writer.returncode == 0, text.decode()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (8,)
        counts = database.execute("select count(*), sum(value) from metrics group by run_uuid").fetchall()
        assert counts == [(400, 80200.0)] * 8
        assert database.execute("select count(*) from params").fetchone() == (800,)


def test_a_locked_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.start(where, "name", {}) as tracker:
        real, failures = operations.apply, [3]

        def locked(*arguments: object) -> None:
            if failures[0]:
                failures[0] -= 1
                from mlflow.exceptions import MlflowException
                from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

                raise MlflowException("(sqlite3.OperationalError) database is locked", TEMPORARILY_UNAVAILABLE)
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(operations, "apply", locked)
        monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
        tracker.metrics({"a": 1.0})
    assert failures == [0]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("select key, value from metrics").fetchall() == [("a", 1.0)]


# --- small things -------------------------------------------------------------------------------------------


def test_passwords_are_not_written_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://me:s3cret@host:1/path"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError) as caught:
        Tracking(uri=uri)
    assert "s3cret" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert Tracking().store == uri
    assert Tracking().shown == "http://host:1/path"
    assert Tracking(uri="sqlite:////a@b:c/mlflow.db").shown == "sqlite:////a@b:c/mlflow.db"
    with pytest.raises(UserError, match=r"tracking\.patience=-1"):
        Tracking(patience=-1)


def test_a_file_without_a_whole_header_is_no_file(tmp_path: Path) -> None:
    assert Outbox.read(tmp_path) is None
    header = Header("uri", "experiment", "name", {"a": "b"}, None, 5)
    made = Outbox.create(tmp_path / outbox.NAME, header)
    made.add(Operation("tags", {"é": "\n"}))
    text = made.file.read_text()
    found = Outbox.read(tmp_path)
    assert found is not None
    assert found.header() == header
    assert found.operations() == [Operation("tags", {"é": "\n"})]
    assert found.status() is None
    made.file.write_text(text[:20])
    assert Outbox.read(tmp_path) is None
    with pytest.raises(UserError, match="is damaged"):
        upload([str(tmp_path)])
    with pytest.raises(UserError, match="no such folder"):
        upload([str(tmp_path / "none")])


def test_the_list_of_runs_has_columns_for_each_main_metric(tmp_path: Path) -> None:
    where = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    for metric in ("f1", "accuracy", "f1"):
        with tracking.start(where, "name", {columns.METRIC: metric}):
            pass
    client, experiment = tracking.connect(where)
    view = json.loads(client.get_experiment(experiment).tags[columns.VIEW])
    shown = [
        *(f"params.`{name}`" for name in ("model", "dataset", "pattern", "seed")),
        *(f"metrics.`{name}`" for name in ("dense/f1", "sparse/f1", "dense/accuracy", "sparse/accuracy")),
        *(f"metrics.`{name}`" for name in ("relative_drop", "sparsity/linear")),
        "attributes.`Models`",
    ]
    assert view["selectedColumns"] == view["columnOrder"] == shown
    assert set(view["columnWidths"]) == set(shown)


def test_the_list_of_runs_opens_on_runs_that_did_not_end_badly(tmp_path: Path) -> None:
    where = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.start(where, "finished", {columns.METRIC: "f1"}):
        pass
    with pytest.raises(ZeroDivisionError), tracking.start(where, "failed", {}):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), tracking.start(where, "killed", {}):
        raise KeyboardInterrupt
    client, experiment = tracking.connect(where)
    view = json.loads(client.get_experiment(experiment).tags[columns.VIEW])
    with tracking.start(where, "in progress", {}):
        listed = client.search_runs([experiment], view["searchFilter"])
    assert {run.info.run_name for run in listed} == {"finished", "in progress"}


def test_a_view_that_an_earlier_version_stored_is_replaced_and_keeps_its_scores(tmp_path: Path) -> None:
    where = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    client, experiment = tracking.connect(where)
    earlier = ["params.`model`", "metrics.`dense/f1`", "metrics.`sparse/f1`", "metrics.`relative_drop`"]
    stored = {"searchFilter": "", "selectedColumns": earlier, "runsPinned": []}
    client.set_experiment_tag(experiment, columns.VIEW, json.dumps(stored))
    with tracking.start(where, "name", {columns.METRIC: "accuracy"}):
        pass
    view = json.loads(client.get_experiment(experiment).tags[columns.VIEW])
    assert [column for column in view["selectedColumns"] if "/f1" in column or "/accuracy" in column] == [
        f"metrics.`{name}`" for name in ("dense/f1", "sparse/f1", "dense/accuracy", "sparse/accuracy")
    ]
    assert view["searchFilter"]

"""What is interrupted goes on: the same bits, the same MLflow run, no step twice; and what is damaged is not used."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from results import columns
from runner import tracking
from runner.system import files
from runner.system.errors import UserError
from runner.system.interrupts import Interrupted, postponed, raise_on_signals
from runner.system.locks import exclusive
from runner.system.process import exit_status
from runner.training import checkpoints
from tests.conftest import ROOT, Cli

COMMAND = (
    "-m", "runner", "pattern=4x1", "dataset=demo", "dataset.train_examples=96", "dataset.eval_examples=40",
    "recipe=published",
    "schedule=short", "train.max_steps=240", "train.per_device_train_batch_size=8", "train.save_steps=30",
    "train.logging_steps=7", "finetune.max_steps=5", "finetune.per_device_train_batch_size=8",
)  # fmt: skip


def histories(store: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each metric of the training, of all runs."""
    with sqlite3.connect(store) as database:
        rows = database.execute("select key, step, value from metrics where key like 'train/%' order by step")
        found: dict[str, list[tuple[int, float]]] = {}
        for key, step, value in rows:
            found.setdefault(key, []).append((step, value))
    return found


def runs(store: Path) -> list[str]:
    with sqlite3.connect(store) as database:
        return [status for (status,) in database.execute("select status from runs")]


def killed(arguments: tuple[str, ...], folder: Path, number: int, after: int) -> subprocess.CompletedProcess[str]:
    """Run the command line until a checkpoint of so many steps is there, then send a signal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    deadline = time.monotonic() + 200
    while not any(checkpoints.step(p) >= after for p in folder.glob("outputs/*/checkpoints/checkpoint-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    text, _ = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, text, "")


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_as_one_that_was_not(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = (*COMMAND, "model=hub", f"model.path={small_model}")
    store = tmp_path / "mlflow.db"
    assert killed(command, tmp_path, signal.SIGKILL, after=60).returncode == -signal.SIGKILL
    assert runs(store) == ["RUNNING"]  # nobody could tell MLflow
    stopped = killed(command, tmp_path, signal.SIGTERM, after=120)
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stdout
    assert "the same command resumes from there" in stopped.stdout
    assert "Traceback" not in stopped.stdout
    assert runs(store) == ["KILLED"]
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert runs(store) == ["FINISHED"]
    whole = cli(*command, "output_dir=whole", f"tracking.uri=sqlite:///{tmp_path}/whole.db")
    assert whole.returncode == 0, whole.stderr

    (mine,), (theirs,) = tmp_path.glob("outputs/*-s0-*/"), tmp_path.glob("whole/*-s0-*/")
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (mine, theirs)]
    assert weights[0] == weights[1]
    results = [json.loads((folder / "result.json").read_text()) for folder in (mine, theirs)]
    assert results[0]["sparse"] == results[1]["sparse"]
    logged, expected = histories(store), histories(tmp_path / "whole.db")
    assert set(expected) == {"train/loss", "train/learning_rate", "train/sparsity"}
    assert [step for step, _ in expected["train/loss"]] == [*range(7, 240, 7)]
    assert logged == expected  # every step once, with the same numbers


# --- checkpoints --------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int) -> Path:
    written = folder / "saving" / f"checkpoint-{step}"
    (written / "deeper").mkdir(parents=True)
    (written / "model.safetensors").write_bytes(bytes(range(256)) * step)
    (written / "deeper" / "state.json").write_text("{}")
    place = folder / f"checkpoint-{step}"
    files.publish(written, place)
    return place


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "no seal", "torn seal", "empty seal", "none"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, last = checkpoint(tmp_path, 90), checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 9)
    (tmp_path / "saving" / "checkpoint-110").mkdir()  # a kill in the middle of writing leaves this
    (tmp_path / "checkpoint-notes").mkdir()
    file, seal = last / "model.safetensors", last / files.MANIFEST
    data = bytearray(file.read_bytes())
    data[77] ^= 4
    {
        "flipped": lambda: file.write_bytes(data),
        "cut": lambda: file.write_bytes(data[:-1]),
        "missing": file.unlink,
        "no seal": seal.unlink,
        "torn seal": lambda: seal.write_text(seal.read_text()[:-5]),
        "empty seal": lambda: seal.write_text("[1]"),
        "none": lambda: None,
    }[damage]()
    assert checkpoints.newest(tmp_path) == (last if damage == "none" else before)
    assert ("is damaged" in caplog.text) == (damage != "none")


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    made = [checkpoint(tmp_path, step) for step in (5, 10, 100)]  # not in the order of their names
    checkpoints.rotate(made[-1], 2)
    assert [path.exists() for path in made] == [False, True, True]
    assert checkpoints.newest(tmp_path / "nothing") is None


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    place = checkpoint(tmp_path, 5)
    (place / "model.safetensors").unlink()
    assert checkpoint(tmp_path, 5) == place
    assert files.integrity_error(place) is None


# --- signals ------------------------------------------------------------------------------------------------


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("runner.system.interrupts._last", float("-inf"))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_first_signal_waits_and_a_later_one_does_not(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_on_signals()
    with postponed() as asked:
        assert asked() is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # at the same moment: the same wish
        assert asked() == signal.SIGTERM
        monkeypatch.setattr("runner.system.interrupts.SAME_SECONDS", 0.0)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(Interrupted) as caught:  # as before
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.status == 143


def test_the_exit_status_is_the_signals(
    handlers: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_on_signals()
    assert exit_status(lambda: signal.raise_signal(signal.SIGTERM)) == 143
    monkeypatch.setattr("runner.system.interrupts.SAME_SECONDS", 0.0)
    assert exit_status(lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert capsys.readouterr().err.splitlines() == ["interrupted", "interrupted"]


def test_a_run_is_run_by_one_process(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "run"),
        pytest.raises(UserError, match="another process runs this very run"),
        exclusive(tmp_path / "run"),
    ):
        pass
    with exclusive(tmp_path / "run"):
        pass


# --- MLflow -------------------------------------------------------------------------------------------------


def test_an_mlflow_run_goes_on_where_it_was(tmp_path: Path) -> None:
    where = tracking.Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    mine: dict[str, object] = {columns.IDENTITY: "abc", columns.FOLDER: "/runs/it's mine"}
    begun: list[str] = []

    def interrupt() -> None:
        with tracking.start(where, "run", {**mine, "a": 1}, resumes=True) as tracker:
            begun.append(str(tracker.run_id))
            tracker.params({"kept": 1, "changed": 1})
            for step in range(1, 11):
                tracker.step("train", step, {"loss": step})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    (first,) = begun
    with tracking.start(where, "run", {**mine, "a": 2}, resumes=True) as second:
        assert second.run_id == first
        second.params({"kept": 1, "changed": 2, "new": 3})  # MLflow would refuse to change one
        for step in range(6, 13):
            second.step("train", step, {"loss": 100 + step})
    client, _ = tracking.connect(where)
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"kept": "1", "changed": "1", "new": "3"}
    assert run.data.tags["a"] == "2"
    assert "error" not in run.data.tags
    history = client.get_metric_history(first, "train/loss")
    assert [(m.step, m.value) for m in history] == [*((s, s) for s in range(1, 11)), (11, 111), (12, 112)]
    # A finished run is not gone on with, nor one of another folder or identity, nor one that was deleted.
    with tracking.start(where, "run", mine, resumes=True) as other:
        assert other.run_id != first
    for tags in ({**mine, columns.FOLDER: "elsewhere"}, {**mine, columns.IDENTITY: "other"}):
        with pytest.raises(KeyboardInterrupt):
            interrupt()
        with tracking.start(where, "run", tags, resumes=True) as other:
            assert other.run_id not in begun
    client.delete_run(begun[-1])
    with tracking.start(where, "run", mine, resumes=True) as other:
        assert other.run_id != begun[-1]


def test_a_database_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    where = tracking.Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db.new") as half_migrated:  # what a kill in MLflow's migration leaves
        half_migrated.execute("create table trace_info (request_id text)")
    with tracking.start(where, "run", {}) as tracker:
        pass
    assert tracking.is_finished(where, tracker.run_id)
    assert not list(tmp_path.glob("*.new*"))

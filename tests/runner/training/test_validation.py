"""Scores on a part of train while a student trains: they change nothing but what they are to choose, and resume."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runner.config.training import Evaluation
from runner.data.demo import Demo
from runner.system.errors import UserError
from runner.training import checkpoints, validation
from runner.training.training_data import TrainingData
from tests.conftest import Cli
from tests.runner.training.test_average import LABELS, new_pruner, settings, student, weights
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import Interrupt, Recorder, quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS = {"evaluate": Evaluation.epochs, "per_device_train_batch_size": 16, "save_steps": 5}


def interrupt(step: int, values: Any) -> None:
    if step == 11 and "loss" in values:
        raise Interrupt


@pytest.fixture(scope="module")
def data() -> TrainingData:
    task, tokenizer = Demo(train_examples=48, eval_examples=8, validation=0.3), build_tokenizer()
    examples = task.read()
    assert examples.train is not None
    assert examples.validation is not None
    features = task.features(examples.train, tokenizer, None, labels=True)
    return TrainingData(task, features, tokenizer, validation=examples.validation)


def run(folder: Path, data: TrainingData, log: Callable[..., Any] = quiet, end: int = 4, **changes: Any):
    torch.manual_seed(5)
    model = student(folder.parent / "model")
    pruner = new_pruner(model, end)
    train(model, data, settings(None, **{**EPOCHS, **changes}), LABELS, pruner, 5, folder, "t", log)
    return model


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Scores that are given, the first one first, once for each step that is scored."""
    given = [0.1, 0.9, 0.4, 0.6, 0.5, 0.3]  # of steps 2, 4, ...: with 80 % from step 4 on, the best is that of step 4
    seen: dict[int, float] = {}
    original = validation.Validation._score

    def score(self: Any, step: int) -> None:
        seen[step] = given[step // 2 - 1]
        monkeypatch.setattr(self, "_value", lambda: seen[step])
        original(self, step)

    monkeypatch.setattr(validation.Validation, "_score", score)
    return given


def per_epoch(data: TrainingData) -> int:
    return data.batches(settings(None, **EPOCHS), 0).steps


def test_no_example_is_trained_on_and_scored() -> None:
    whole, parts = Demo(train_examples=48, eval_examples=8).read(), Demo(train_examples=48, eval_examples=8,
                                                                         validation=0.3).read()  # fmt: skip
    assert whole.train is not None
    assert parts.train is not None
    assert parts.validation is not None
    assert whole.validation is None
    contexts = [set(part["context"]) for part in (parts.train, parts.validation)]
    assert not contexts[0] & contexts[1]
    assert sorted(map(str, [*parts.train["id"], *parts.validation["id"]])) == sorted(map(str, whole.train["id"]))
    assert parts.evaluation_fingerprint == whole.evaluation_fingerprint
    assert parts.train_fingerprint != whole.train_fingerprint


@pytest.mark.parametrize("when", list(Evaluation))
def test_scores_change_no_weight(tmp_path: Path, data: TrainingData, when: Evaluation) -> None:
    logged: dict[int, float] = {}

    def log(step: int, values: Any) -> None:
        logged.update({step: values["validation_f1"]} if "validation_f1" in values else {})

    plain = run(tmp_path / "plain", data, evaluate=None)
    scored = run(tmp_path / "scored", data, log, evaluate=when)
    assert all(torch.equal(p, weights(scored)[name]) for name, p in weights(plain).items())
    epoch = per_epoch(data)
    assert list(logged) == ([4, 12] if when is Evaluation.updates else [*range(epoch, 13, epoch)])
    assert all(0 <= value <= 1 for value in logged.values())


def test_scores_have_the_sparsity_of_their_step_and_survive_an_interruption(tmp_path: Path, data: TrainingData) -> None:
    how = settings(None, **{**EPOCHS, "evaluate": Evaluation.updates})
    sparsities: dict[int, float] = {}
    scored: list[dict[str, float]] = []
    for name, logs in (("whole", (quiet,)), ("interrupted", (interrupt, quiet))):
        for log in logs:
            torch.manual_seed(5)
            model = student(tmp_path / "model")
            pruner = new_pruner(model, 8)

            def note(step: int, values: Any, log=log, pruner=pruner) -> None:
                sparsities.setdefault(step, pruner.sparsity)
                log(step, values)

            try:
                stats = train(model, data, how, LABELS, pruner, 5, tmp_path / name, "t", note)
            except Interrupt:
                newest = checkpoints.newest(tmp_path / name)
                assert newest is not None
                assert newest.name == "checkpoint-10"  # scores of three updates are before it
        if scored:
            assert stats.validation == scored
        scored = stats.validation
    assert [entry["step"] for entry in scored] == [4, 6, 8, 12]
    assert [entry["sparsity"] for entry in scored] == [sparsities[step] for step in (4, 6, 8, 12)]
    assert sparsities[4] < sparsities[6] < sparsities[8] == pytest.approx(0.8, abs=0.01)
    assert len({entry["score"] for entry in scored}) > 1


@pytest.mark.parametrize(
    "changes", [{"best_checkpoint": True}, {"patience": 2}, {"best_checkpoint": True, "patience": 3}]
)
def test_the_best_weights_and_an_early_end_survive_an_interruption(
    tmp_path: Path, data: TrainingData, falling: list[float], changes: dict[str, Any]
) -> None:
    data = replace(data, features=data.features.select(range(32)))
    assert per_epoch(data) == 2
    seen: dict[int, dict] = {}
    torch.manual_seed(5)
    model = student(tmp_path / "model")
    pruner = new_pruner(model, 4)
    record = lambda step, values: seen.update({step: weights(model)})  # noqa: E731
    train(model, data, settings(None, **{**EPOCHS, **changes}), LABELS, pruner, 5, tmp_path / "whole", "t", record)
    last = 4 + 2 * changes["patience"] if "patience" in changes else 12
    assert max(seen) == last
    expected = seen[4 if "best_checkpoint" in changes else last]
    assert all(torch.equal(p, expected[name]) for name, p in weights(model).items())
    assert sum(row.violations for row in pruner.report()) == 0
    if "best_checkpoint" in changes:
        newest = checkpoints.newest(tmp_path / "whole")
        assert newest is not None
        assert torch.equal(load_file(newest / validation.BEST_FILE)["qa_outputs.weight"], seen[4]["qa_outputs.weight"])

    def stop(step: int, values: Any) -> None:
        if step == 7:
            raise Interrupt

    with pytest.raises(Interrupt):
        run(tmp_path / "twice", data, stop, **changes)
    assert checkpoints.newest(tmp_path / "twice") == tmp_path / "twice" / "checkpoint-5"
    again = run(tmp_path / "twice", data, **changes)
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(model).items())


def test_a_checkpoint_without_its_scores_is_refused(tmp_path: Path, data: TrainingData) -> None:
    with pytest.raises(Interrupt):
        run(tmp_path / "run", data, interrupt, best_checkpoint=True)
    file = tmp_path / "run" / "checkpoint-10" / validation.BEST_FILE
    values = json.loads((file.parent / validation.SCORES_FILE).read_text())
    assert values["best_step"] in range(4, 11)
    file.unlink()
    with pytest.raises(UserError, match="is missing: this checkpoint cannot be resumed"):
        validation.Validation(_job(tmp_path, data), Recorder(), file.parent).on_train_begin(None, None, None)  # type: ignore[arg-type]


def _job(folder: Path, data: TrainingData):
    from runner.training.job import TrainingJob

    how = settings(None, **{**EPOCHS, "best_checkpoint": True})
    return TrainingJob(student(folder / "model"), data, how, LABELS, None, 0, folder, "t")


@pytest.mark.slow
def test_a_run_says_in_the_table_that_scores_chose_its_weights(
    cli: Cli, rows: Callable[[], list[dict]], tmp_path: Path
) -> None:
    done = cli("-m", "runner", "model=tiny", "dataset=demo", "dataset.train_examples=96", "dataset.eval_examples=16",
               "dataset.validation=0.2", "schedule=short", "pattern=4x1", "train.num_train_epochs=3",
               "train.per_device_train_batch_size=8", "finetune.max_steps=3", "train.evaluate=epochs",
               "train.best_checkpoint=true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation f1" in done.stderr
    assert "are saved: their validation score" in done.stderr
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        values = store.execute("select step, value from metrics where key = 'train/validation_f1'").fetchall()
    assert len(values) == 3
    (file,) = (tmp_path / "outputs").glob("*/result.json")
    scores = json.loads(file.read_text())["validation"]
    assert [entry["score"] for entry in scores] == [value for _, value in sorted(values)]
    drawn = file.parent / "pictures" / "score.svg"
    assert "Score while it is pruned" in drawn.read_text()
    run = json.loads(file.read_text())["mlflow_run"]
    done = cli("-m", "results", "picture", "--run", run, "--output", "again.svg")
    assert done.returncode == 0, done.stderr
    assert "Score while it is pruned" in (tmp_path / "again.svg").read_text()
    (row,) = rows()
    assert any("best checkpoint, by scores on a part of train" in note for note in row["notes"])

"""Training on examples without labels: the loss, its resume, and what a run says of them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning import Logits
from runner import dry_run
from runner.config.compose import compose_experiment
from runner.data.demo import Demo
from runner.data.features import Features, with_unlabelled
from runner.stages.prepare import resolve
from runner.stages.timing import tokens
from runner.training import checkpoints
from runner.training.supervision import Supervision
from runner.training.training_data import LABELLED, TrainingData, collate
from tests.conftest import Cli
from tests.runner.training.test_average import new_pruner, settings, student, weights
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import Interrupt, quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """Features with labels, then as many without."""
    task, tokenizer = (
        Demo(train_examples=32, eval_examples=4, max_train_samples=16, unlabelled="train"),
        build_tokenizer(),
    )
    examples = task.read()
    assert examples.train is not None
    assert examples.unlabelled is not None
    labelled = task.features(examples.train, tokenizer, None, labels=True)
    more = Features(task, tokenizer, False, "unlabelled").of(examples.unlabelled, "", None)
    return TrainingData(task, with_unlabelled(labelled, more), tokenizer)


def run(folder: Path, data: TrainingData, label_weight: float, log: Any = quiet, **changes: Any):
    torch.manual_seed(5)
    model, teacher = student(folder.parent / "model"), student(folder.parent / "model").eval()
    teacher.get_parameter("qa_outputs.weight").data.mul_(-3)
    how = Supervision(Logits(weight=0.5, label_weight=label_weight), teacher)
    train(model, data, settings(None, save_steps=5, **changes), how, new_pruner(model), 5, folder, "t", log)
    return model


def test_a_batch_says_which_examples_have_labels(data: TrainingData) -> None:
    make = collate(data.tokenizer, data.task.label_names)
    batch = make(data.features.__getitems__([20, 3, 30, 4]))
    assert batch[LABELLED].tolist() == [False, True, False, True]
    assert batch["start_positions"].tolist()[1] == data.features[3]["start_positions"]
    assert LABELLED not in make(data.features.__getitems__([3, 4]))


def test_labels_count_for_those_that_have_them_and_the_teacher_for_all(tmp_path: Path, data: TrainingData) -> None:
    """The first loss is 0.5 * distillation over all + 2 * the label loss, zero for examples without labels."""
    losses: dict[float, float] = {}
    for weight in (0.0, 2.0):

        def log(step: int, values: Any, weight: float = weight) -> None:
            losses.setdefault(weight, values["loss"])

        run(tmp_path / str(weight), data, weight, log, per_device_train_batch_size=32)
    model = student(tmp_path / "model").eval()
    rows = list(data.features.__getitems__(list(range(len(data.features)))))
    labelled = [row for row in rows if row["start_positions"] is not None]
    assert 0 < len(labelled) < len(rows) == 32
    total = 0.0
    for row in labelled:
        with torch.no_grad():
            out = model(torch.tensor([row["input_ids"]]), torch.tensor([row["attention_mask"]]),
                        torch.tensor([row["token_type_ids"]]))  # fmt: skip
        for head, at in ((out.start_logits, row["start_positions"]), (out.end_logits, row["end_positions"])):
            total -= float(head[0].log_softmax(-1)[at]) / 2
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * total / 32, rel=0.05)  # the training has dropout


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_resumes_bit_for_bit(tmp_path: Path, data: TrainingData, workers: int) -> None:
    def stop(step: int, values: Any) -> None:
        if step == 7:
            raise Interrupt

    changes = {"dataloader_num_workers": workers}
    whole = run(tmp_path / "whole", data, 1.0, **changes)
    with pytest.raises(Interrupt):
        run(tmp_path / "twice", data, 1.0, stop, **changes)
    assert checkpoints.newest(tmp_path / "twice") == tmp_path / "twice" / "checkpoint-5"
    again = run(tmp_path / "twice", data, 1.0, **changes)
    assert all(torch.equal(p, weights(again)[name]) for name, p in weights(whole).items())
    labels_only = replace(data, features=data.features.select(range(16)))
    other = run(tmp_path / "other", labels_only, 1.0, **changes)
    assert any(not torch.equal(p, weights(other)[name]) for name, p in weights(whole).items())


SHORT = (
    "model=tiny", "dataset=demo", "dataset.train_examples=48", "dataset.eval_examples=16",
    "dataset.max_train_samples=16", "dataset.unlabelled=train", "dataset.max_unlabelled_samples=24",
    "schedule=short", "pattern=4x1", "train.num_train_epochs=2", "train.per_device_train_batch_size=8",
    "finetune.num_train_epochs=1", "finetune.per_device_train_batch_size=8", "distill.label_weight=1",
)  # fmt: skip


def test_an_epoch_has_them_and_the_fine_tuning_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, plain = (
        resolve(*compose_experiment(["tracking.uri=sqlite:///x.db", *overrides]), reuse=False)
        for overrides in (SHORT, [o for o in SHORT if "unlabelled" not in o])
    )
    experiment = inputs.experiment
    assert inputs.data is not None
    assert inputs.dense_data is not None
    assert plain.data is plain.dense_data
    assert (len(inputs.dense_data.features), len(inputs.data.features)) == (16, 40)
    assert inputs.dense_data.length(experiment.finetune).steps == 2
    assert inputs.data.length(experiment.train).steps == 10
    assert tokens(inputs, experiment.train) > 3 * tokens(inputs, experiment.finetune)
    assert list(dry_run.unlabelled(inputs)) == [
        "without labels: 24 further examples, distilled only: 24 of 40 features of each epoch"
    ]
    assert list(dry_run.unlabelled(plain)) == []
    assert inputs.identity.dense == plain.identity.dense
    assert inputs.identity.run != plain.identity.run
    assert inputs.identity.control != plain.identity.control


@pytest.mark.slow
def test_a_run_and_its_control_record_them(cli: Cli, tmp_path: Path) -> None:
    for more in ([], ["distill.cache=false"], ["pattern=dense"]):
        done = cli("-m", "runner", *SHORT, *more)
        assert done.returncode == 0, done.stderr
        assert "without labels    24 further training examples" in done.stdout
        assert "24 further training examples without labels" in done.stderr
    results = [json.loads(file.read_text()) for file in (tmp_path / "outputs").glob("*/result.json")]
    assert [result["unlabelled_examples"] for result in results] == [24] * 3
    cards = [file.read_text() for file in (tmp_path / "outputs").glob("*/model/README.md")]
    assert all("Training examples without labels" in card and "24, distilled only" in card for card in cards)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        tags = store.execute("select value from tags where key = 'examples.unlabelled'").fetchall()
        contexts = store.execute("select value from input_tags").fetchall()
        controls = store.execute("select value from tags where key = 'prune_distill.control'").fetchall()
    assert tags == [("24",)] * 3
    assert contexts.count(("unlabelled",)) == 3
    assert len({*controls}) == 2  # 4x1 and dense agree; the run without a cache is another

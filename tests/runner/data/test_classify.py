"""Text classification: classes and numbers, scores, and runs from end to end."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import BertConfig

from runner.data.classes import check_same
from runner.data.classification import Classify
from runner.data.examples import Examples
from runner.system.errors import UserError
from tests import small_data
from tests.conftest import Cli, save_small_model
from tests.loopback_hub import serve
from tests.tools.pretrain_tiny import build_tokenizer

TOKENIZER = build_tokenizer()


def lines(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def features_of(task: Classify, read: Examples) -> list[dict[str, Any]]:
    return task.features(read.evaluation, TOKENIZER, None, labels=False).to_list()


# --- features, outputs and scores ---------------------------------------------------------------------------

REVIEWS = [
    {"text": f"a {word} film {i}", "label": label}
    for i in range(10)
    for word, label in (("good", "pos"), ("bad", "neg"))
]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    lines(tmp_path, "train.jsonl", REVIEWS)
    lines(tmp_path, "dev.jsonl", REVIEWS[:4])
    return tmp_path


def test_classes_are_those_of_the_data_in_order_of_their_names(reviews: Path) -> None:
    task = Classify(path=str(reviews))
    read = task.read()
    assert read.evaluation.features["label"].names == ["neg", "pos"]
    assert list(read.evaluation["label"]) == [1, 0, 1, 0]
    assert [row["label"] for row in task.rows(read.evaluation)] == ["pos", "neg", "pos", "neg"]
    asked = Classify(path=str(reviews), labels=["pos", "neg"]).read()
    assert list(asked.evaluation["label"]) == [0, 1, 0, 1]
    assert asked.evaluation_fingerprint != read.evaluation_fingerprint


@pytest.mark.parametrize("labels", [["-1", "1"], ["-1", "0", "1"]])
def test_minus_one_is_a_class_where_it_is_named(tmp_path: Path, labels: list[str]) -> None:
    lines(tmp_path, "dev.jsonl", [{"text": f"film {i}", "label": int(label)} for i, label in enumerate(labels)])
    read = Classify(path=str(tmp_path), labels=labels).read(train=False)
    assert list(read.evaluation["label"]) == list(range(len(labels)))
    assert read.evaluation.features["label"].names == labels


def test_features_are_what_the_tokenizer_makes_of_one_text_or_two(tmp_path: Path) -> None:
    rows = [{"a": "who is old", "b": "Ada is old", "label": 0}, {"a": "is " * 30, "b": "old", "label": 1}]
    lines(tmp_path, "train.jsonl", rows * 5)
    lines(tmp_path, "dev.jsonl", rows)
    task = Classify(path=str(tmp_path), text="a", text_pair="b", max_seq_length=16)
    made = features_of(task, task.read())
    expected = TOKENIZER([r["a"] for r in rows], [r["b"] for r in rows], truncation=True, max_length=16)
    assert [row["input_ids"] for row in made] == expected["input_ids"]
    assert [row["token_type_ids"] for row in made] == expected["token_type_ids"]
    assert [row["length"] for row in made] == [len(ids) for ids in expected["input_ids"]]
    assert made[1]["length"] == 16
    assert [row["example"] for row in made] == [0, 1]


def test_scores_are_those_of_the_highest_logit(reviews: Path) -> None:
    task = Classify(path=str(reviews), metric="f1", other_metrics=["accuracy"])
    read = task.read()
    logits = np.array(
        [[0.1, 0.2], [0.3, 0.9], [2, 1], [1, 0]], np.float32
    )  # pos, pos, neg, neg; gold pos, neg, pos, neg
    scores = task.score(read.evaluation, task.features(read.evaluation, TOKENIZER, None, labels=False), [logits])
    assert scores.metrics == {"f1": 0.5, "accuracy": 0.5}
    ids = list(read.evaluation["id"])
    assert scores.predictions == dict(zip(ids, ["pos", "pos", "neg", "neg"], strict=True))
    assert scores.by_example == dict(zip(ids, [1.0, 0.0, 0.0, 1.0], strict=True))
    assert (scores.statistic, list(scores.statistics)) == ("f1", ids)
    plain = Classify(path=str(reviews))
    scores = plain.score(read.evaluation, plain.features(read.evaluation, TOKENIZER, None, labels=False), [logits])
    assert (scores.metrics, scores.statistic, scores.statistics) == ({"accuracy": 0.5}, "mean", {})


def test_the_first_of_two_evaluation_splits_counts_and_the_other_stands_beside_it(tmp_path: Path) -> None:
    lines(tmp_path, "train.jsonl", REVIEWS)
    lines(tmp_path, "dev_matched.jsonl", REVIEWS[:4])
    lines(tmp_path, "dev_mismatched.jsonl", REVIEWS[4:10])
    task = Classify(path=str(tmp_path), evaluation_splits=["dev_matched", "dev_mismatched"])
    read = task.read()
    assert len(read.evaluation) == 10
    logits = np.zeros((10, 2), np.float32)
    logits[:4, 1] = 1  # pos for the first four, half of which are; neg for the others
    logits[9, 1] = 1
    scores = task.score(read.evaluation, task.features(read.evaluation, TOKENIZER, None, labels=False), [logits])
    assert scores.metrics == {"accuracy": 0.5, "accuracy_dev_mismatched": pytest.approx(2 / 6)}
    assert len(scores.predictions) == 10
    assert list(scores.by_example) == [f"dev_matched-{i}" for i in range(4)]
    assert len(Classify(path=str(tmp_path), evaluation_splits=["dev_matched", "dev_mismatched"], max_eval_samples=3)
               .read().evaluation) == 6  # fmt: skip


def test_numbers_have_one_output(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i / 2} for i in range(8)]
    lines(tmp_path, "train.jsonl", rows)
    lines(tmp_path, "dev.jsonl", rows[:3])
    task = Classify(path=str(tmp_path), regression=True, metric="pearson", other_metrics=["spearmanr"])
    read = task.read()
    config = BertConfig()
    task.configure(config, read.evaluation, None)
    assert (config.num_labels, config.problem_type) == (1, "regression")
    with pytest.raises(UserError, match=r"model.finetuned=x: its head has 3 outputs.*regression=true needs one"):
        task.configure(unnamed(3), read.evaluation, "model.finetuned=x")
    logits = np.array([[1.0], [2.0], [4.0]], np.float32)
    scores = task.score(read.evaluation, task.features(read.evaluation, TOKENIZER, None, labels=False), [logits])
    assert scores.metrics["spearmanr"] == pytest.approx(1)
    assert scores.metrics["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [0, 0.5, 1])[0, 1])
    assert list(scores.predictions.values()) == [1, 2, 4]
    assert (scores.by_example, len(scores.statistics)) == ({}, 3)


# --- the classes of a model ---------------------------------------------------------------------------------


def three() -> datasets.Dataset:
    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features({"label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"label": [0]}, features=features)


def unnamed(classes: int) -> BertConfig:
    config = BertConfig()
    config.num_labels = classes
    return config


def named(*names: str) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})


def test_a_new_head_gets_the_classes_of_the_data() -> None:
    config = BertConfig()
    Classify(path="x").configure(config, three(), None)
    assert config.num_labels == 3
    assert config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}


@pytest.mark.parametrize("config", [named("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), unnamed(3)])
def test_a_trained_head_with_the_same_classes_is_taken(config: BertConfig) -> None:
    Classify(path="x").configure(config, three(), "model.finetuned=x")
    assert dict(config.id2label or {}) == {0: "entailment", 1: "neutral", 2: "contradiction"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            named("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
            r"another order. If the data hold names, set dataset.labels='\[contradiction,neutral,en",
        ),
        (unnamed(2), "has the classes LABEL_0, LABEL_1, the data entailment, neutral, contradiction; choose"),
        (named("a", "b", "c"), "choose a model that was fine-tuned on these classes"),
    ],
)
def test_a_trained_head_with_other_classes_is_refused(config: BertConfig, said: str) -> None:
    with pytest.raises(UserError, match=f"^model.finetuned=x: .*{said}"):
        Classify(path="x").configure(config, three(), "model.finetuned=x")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "f2"}, "dataset.metric=f2 must be one of accuracy, f1"),
        ({"other_metrics": ["x"]}, "dataset.other_metrics=x must be one of accuracy"),
        (
            {"metric": "pearson"},
            "dataset.metric=pearson does not fit dataset.regression=false; metrics that fit are accuracy",
        ),
        (
            {"regression": True},
            "dataset.metric=accuracy does not fit dataset.regression=true; metrics that fit are pearson, spearmanr",
        ),
        ({"labels": ["a", "b", "a"]}, "a occurs twice"),
        ({"regression": True, "metric": "pearson", "labels": ["a"]}, "numbers have no classes"),
        ({"holdout": 1.0}, "dataset.holdout=1.0 must be a fraction of train"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Classify(path="x", **options)
    assert said in str(caught.value)


# --- from end to end ----------------------------------------------------------------------------------------

SHORT = ("recipe=published",
         "schedule=short", "finetune.num_train_epochs=2", "finetune.learning_rate=1e-3", "train.num_train_epochs=2",
         "train.learning_rate=1e-3")  # fmt: skip


def word_model(folder: Path) -> Path:
    """A small random BERT that knows the words of `tests.small_data`."""
    return save_small_model(folder)


@pytest.mark.slow
def test_a_run_with_the_published_distillation_of_mrpc(cli: Cli, rows: Any, tmp_path: Path) -> None:
    model = word_model(tmp_path / "small")
    with serve(small_data.make(tmp_path / "hub"), tmp_path / "home") as env:
        done = cli("-m", "runner", "dataset=mrpc", "distill=simkd", "model=hub", f"model.path={model}",
                   "pattern=2:4", *SHORT, env=env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = rows()
    assert (row["dataset"], row["pattern"], row["metric"]) == ("mrpc", "2:4", "f1")
    assert 0 <= row["sparse_mean"] <= 1
    (folder,) = (tmp_path / "outputs").glob("*-mrpc-*")
    config = json.loads((folder / "model/config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "not_equivalent", "1": "equivalent"}
    saved = json.loads((folder / "scores.json").read_text())
    assert (len(saved["id"]), saved["statistics"]["name"]) == (20, "f1")
    assert set(json.loads((folder / "predictions.json").read_text()).values()) <= {"not_equivalent", "equivalent"}
    shown = cli("-m", "runner.examples", str(folder), "--no-log", env=env)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.slow
def test_a_run_on_numbers_teaches_by_the_teachers_numbers(cli: Cli, rows: Any, tmp_path: Path) -> None:
    model = word_model(tmp_path / "small")
    with serve(small_data.make(tmp_path / "hub"), tmp_path / "home") as env:
        done = cli("-m", "runner", "dataset=stsb", "model=hub", f"model.path={model}", "pattern=4x1", *SHORT, env=env)
        again = cli("-m", "runner.evaluate", next((tmp_path / "outputs").glob("*-stsb-*/model")).as_posix(),
                    "dataset=stsb", env=env)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = rows()
    assert (row["dataset"], row["metric"]) == ("stsb", "pearson")
    (folder,) = (tmp_path / "outputs").glob("*-stsb-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["sparse"].keys() == {"pearson", "spearmanr"}
    assert "teacher" in result["stages"]  # its logits were cached, and read from there
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["pearson"] == pytest.approx(result["sparse"]["pearson"])


def test_a_checkpoint_without_a_head_for_the_task_is_no_dense_model(cli: Cli, tmp_path: Path) -> None:
    model = word_model(tmp_path / "small")  # answers questions
    file = lines(tmp_path, "train.jsonl", REVIEWS)
    done = cli("-m", "runner", "dataset=sst2", f"dataset.path={file}", "dataset.text=text", "dataset.id=null",
               "dataset.labels=[neg,pos]", "model=hub", f"model.path={model}", f"model.finetuned={model}",
               "pattern=2:4", *SHORT)  # fmt: skip
    assert done.returncode == 1
    assert "it has no weights for bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias" in done.stderr
    assert "not fine-tuned for this kind of task (SequenceClassification)" in done.stderr
    assert "Traceback" not in done.stderr


def test_logits_are_kept_for_each_example(tmp_path: Path) -> None:
    task = Classify(path="x")
    assert task.logits_of(datasets.Dataset.from_dict({"length": [3, 4]}), classes=5) == 10
    heads = task.heads(type("Out", (), {"logits": torch.zeros(2, 5)}), torch.ones(2, 4, dtype=torch.bool))
    assert (heads.real, heads.numbers) == (None, False)


def test_f1_is_that_of_the_named_class_whatever_the_order(reviews: Path) -> None:
    found = {}
    for labels in (["neg", "pos"], ["pos", "neg"]):
        for positive in ("pos", "neg", None):
            task = Classify(path=str(reviews), metric="f1", labels=labels, positive=positive)
            read = task.read()
            logits = np.zeros((4, 2), np.float32)
            logits[:, labels.index("pos")] = [1, 1, 1, -1]  # pos, pos, pos, neg; gold pos, neg, pos, neg
            made = task.features(read.evaluation, TOKENIZER, None, labels=False)
            found[labels[1], positive] = task.score(read.evaluation, made, [logits]).metrics["f1"]
    assert found["pos", "pos"] == found["neg", "pos"] == found["pos", None] == pytest.approx(0.8)
    assert found["pos", "neg"] == found["neg", "neg"] == found["neg", None] == pytest.approx(2 / 3)


def test_f1_of_no_class_in_particular_is_refused(tmp_path: Path) -> None:
    lines(tmp_path, "dev.jsonl", [{"text": f"x{i}", "label": "abc"[i]} for i in range(3)])
    with pytest.raises(
        UserError, match=r"dataset.positive=None: f1 is the F1 of one class.* a, b, c, or use .*macro_f1"
    ):
        Classify(path=str(tmp_path), metric="f1").read(train=False)
    with pytest.raises(UserError, match=r"dataset.positive=d"):
        Classify(path=str(tmp_path), metric="f1", positive="d").read(train=False)
    assert len(Classify(path=str(tmp_path), metric="f1", positive="b").read(train=False).evaluation) == 3


def test_where_the_data_have_only_numbers_the_models_are_compared_with_each_other() -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["0", "1"])})
    numbers = datasets.Dataset.from_dict({"label": [0]}, features=features)
    one, other, unknown = named("neg", "pos"), named("POS", "NEG"), unnamed(2)
    for given, config in (("model.finetuned=a", one), ("distill.teacher=b", other), ("model.sparse=c", unknown)):
        Classify(path="x").configure(config, numbers, given)
    assert dict(one.id2label or {}) == {0: "neg", 1: "pos"}  # the data have no better names
    assert dict(unknown.id2label or {}) == {0: "0", 1: "1"}
    check_same({"model.finetuned=a": one, "model.sparse=c": unknown})
    with pytest.raises(
        UserError, match=r"distill.teacher=b: its classes are pos, neg, those of model.finetuned=a neg, pos"
    ):
        check_same({"model.finetuned=a": one, "distill.teacher=b": other})


def test_a_head_of_another_task_is_drawn_anew(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    from runner import models

    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.num_labels = 3
    BertForSequenceClassification(config).save_pretrained(tmp_path / "mnli")
    base = models.find(str(tmp_path / "mnli"), models.PRETRAINED, models.Model(path=str(tmp_path / "mnli")))
    base.config.num_labels = 2
    model: Any = models.load("AutoModelForSequenceClassification", base)
    assert model.classifier.weight.shape == (2, 8)
    assert torch.equal(model.bert.pooler.dense.weight, base_weights(tmp_path / "mnli")["bert.pooler.dense.weight"])


def base_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")

"""A run's model in MLflow: logged with signature and example, and loaded by `mlflow.pyfunc.load_model` to answer."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import mlflow.pyfunc
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from transformers import AutoConfig

from results import columns
from runner import serving, tracking
from runner.data.classification import Classify
from runner.data.demo import Demo
from runner.data.question_answering import Span
from runner.data.tagging import Tag
from runner.data.task import Dataset
from runner.records.result import FILE, Result
from runner.serving import Answerer
from runner.system.errors import UserError
from runner.tracking import Logging, Tracking, outbox
from runner.tracking.outbox import Header, Operation, Outbox
from runner.tracking.upload import send
from runner.training.inference import score
from tests.tools.pretrain_tiny import build_tokenizer

WORDS = ("the", "old", "man", "saw", "Anna", "in", "Rome", "and", "left", "a", "red", "house")


def sentence(number: int, length: int) -> list[str]:
    return [WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(length)]


def examples_of(task: Dataset, count: int = 9) -> datasets.Dataset:
    """Evaluation examples as the task reads them."""
    words = [sentence(i, 4 + i) for i in range(count)]
    rows: dict[str, list] = {"id": [f"example {i}" for i in range(count)]}
    if isinstance(task, Span):
        starts = [len(" ".join(each[:2])) + 1 for each in words]
        rows |= {"context": [" ".join(each) for each in words], "question": ["Who?"] * count}
        rows["answers"] = [
            {"text": [each[2]], "answer_start": [start]} for each, start in zip(words, starts, strict=True)
        ]
        return datasets.Dataset.from_dict(rows)
    if isinstance(task, Tag):
        names = datasets.ClassLabel(names=["O", "B-PER", "B-LOC"])
        rows |= {"tokens": words, "tags": [[i % 3 for i, _ in enumerate(each)] for each in words]}
        return datasets.Dataset.from_dict(rows).cast_column("tags", datasets.List(names))
    assert isinstance(task, Classify)
    rows["text"] = [" ".join(each) for each in words]
    if task.text_pair:
        rows["text_pair"] = [" ".join(reversed(each)) for each in words]
    rows["label"] = [i / 3 for i in range(count)] if task.regression else [i % 12 for i in range(count)]
    read = datasets.Dataset.from_dict(rows)
    if task.regression:
        return read.cast_column("label", datasets.Value("float32"))
    return read.cast_column("label", datasets.ClassLabel(names=[f"class {i}" for i in range(12)]))


def save(task: Dataset, examples: datasets.Dataset, folder: Path) -> Any:
    """A model with random weights for the task, in a run's folder; returns it."""
    import transformers

    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), initializer_range=2.0, **sizes)
    task.configure(config, examples, None)
    torch.manual_seed(0)
    model = getattr(transformers, task.architecture).from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


TASKS = {
    "question answering": Span(question="question", doc_stride=8, max_seq_length=24),
    "questions without an answer": Span(unanswerable=True, null_threshold=-3.0),
    "classification": Classify(text="message"),
    "pairs": Classify(text="first", text_pair="second"),
    "regression": Classify(regression=True, metric="pearson"),
    "tagging": Tag(tokens="words", max_seq_length=16, doc_stride=4),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_loaded_model_answers_as_the_run_scored_it(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    examples = examples_of(task)
    model = save(task, examples, tmp_path / "model")
    scored = score(model, build_tokenizer(), task, examples, None, "Scoring")
    values = serving.to_log(task, examples, tmp_path / "model", Logging.link)
    assert values is not None
    assert json.loads(json.dumps(values)) == values  # it may have to wait in an outbox
    (tmp_path / "served.json").write_text(json.dumps(values["description"]))
    table = pd.DataFrame({theirs: list(examples[ours]) for ours, theirs in task.columns().items()})
    answers = Answerer(tmp_path).predict(table)
    assert list(answers) == list(values["outputs"])
    expected = list(scored.predictions.values())
    assert answers[task.answer].tolist() == (pytest.approx(expected) if task.answer_type() == "number" else expected)
    assert len({str(answer) for answer in expected}) > 1  # else all would be equal by chance
    assert Answerer(tmp_path).predict(table.iloc[:0]).empty


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder that describes a classifier in the folder `run/model`."""
    task = TASKS["classification"]
    examples = examples_of(task)
    save(task, examples, tmp_path / "run" / "model")
    values = serving.to_log(task, examples, tmp_path / "run" / "model", Logging.link)
    assert values is not None
    (tmp_path / "served.json").write_text(json.dumps(values["description"]))
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    described = json.loads((folder / "served.json").read_text())
    (folder / "served.json").write_text(json.dumps({**described, **values}))


def test_a_link_to_a_folder_that_is_gone_says_where_it_was(linked: Path) -> None:
    shutil.rmtree(linked / "run")
    change(linked, host="machine-of-the-run")
    with pytest.raises(UserError, match=r"run/model: MLflow has only a link .* machine-of-the-run.*log_model=copy"):
        Answerer(linked)


def test_other_weights_in_the_folder_are_refused(linked: Path) -> None:
    with (linked / "run" / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\1\0")
    with pytest.raises(UserError, match="its weights are not those that were logged"):
        Answerer(linked)


def test_a_copy_next_to_the_description_is_taken_without_the_runs_folder(linked: Path) -> None:
    (linked / "run" / "model").rename(linked / "model")
    answers = Answerer(linked).predict(pd.DataFrame({"message": ["the old man"], "other": [1]}, index=["row"]))
    assert list(answers.index) == ["row"]
    assert answers["label"].iloc[0].startswith("class ")


def test_a_task_that_is_not_imported_is_named_and_nothing_is_imported(linked: Path) -> None:
    change(linked, task="Pointer")
    with pytest.raises(UserError, match="there is no task Pointer here; import your module"):
        Answerer(linked)


def test_settings_of_another_version_are_refused(linked: Path) -> None:
    change(linked, settings={"text": "message", "newer": 1})
    with pytest.raises(UserError, match=r"of another version: .*newer"):
        Answerer(linked)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a"]}, "there is no column message; the table has text"),
        ({"message": ["a", None]}, "column message, row 1: (None|nan) is not text"),
        ({"message": ["a", 3.5]}, "column message, row 1: 3.5 is not text"),
        ({"message": [["a", "list"]]}, "column message, row 0: .* is not text"),
    ],
)
def test_a_table_without_texts_is_refused(table: dict[str, list], message: str, linked: Path) -> None:
    with pytest.raises(UserError, match=message):
        Answerer(linked).predict(pd.DataFrame(table))


@pytest.mark.parametrize("words", ["a sentence", [], ["a", None]])
def test_a_table_without_lists_of_words_is_refused(words: Any, tmp_path: Path) -> None:
    task = TASKS["tagging"]
    examples = examples_of(task)
    save(task, examples, tmp_path / "model")
    values = serving.to_log(task, examples, tmp_path / "model", Logging.link)
    assert values is not None
    assert values["inputs"] == {"words": "strings"}
    (tmp_path / "served.json").write_text(json.dumps(values["description"]))
    with pytest.raises(UserError, match=r"column words, row 0: .* is not a list of words"):
        Answerer(tmp_path).predict(pd.DataFrame({"words": [words]}))


def test_a_task_of_a_user_without_answers_is_run_without_a_model(tmp_path: Path) -> None:
    class Own(Classify):
        answer = ""

    examples = examples_of(TASKS["classification"])
    assert serving.to_log(Own(), examples, tmp_path, Logging.link) is None


# --- MLflow -------------------------------------------------------------------------------------------------


def logged(folder: Path, how: Logging = Logging.link) -> dict[str, Any]:
    """What a run in this folder gives MLflow, after its classifier was saved."""
    task = TASKS["classification"]
    examples = examples_of(task)
    save(task, examples, folder / "model")
    values = serving.to_log(task, examples, folder / "model", how)
    assert values is not None
    return values


def tags(folder: Path) -> dict[str, str]:
    return {columns.IDENTITY: str(folder), columns.FOLDER: str(folder)}


def models_of(where: Tracking) -> list[Any]:
    client, experiment = tracking.connect(where)
    return list(client.search_logged_models([experiment]))


def outputs(client: MlflowClient, run: str) -> list[str]:
    logged = client.get_run(run).outputs
    return [output.model_id for output in logged.model_outputs] if logged is not None else []


def test_a_model_has_signature_example_scores_and_labels(
    where: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = logged(tmp_path, Logging.copy)
    with tracking.start(where, "name", tags(tmp_path)) as tracker:
        tracker.params({"model": "small", "seed": 0})
        tracker.metrics({"dense/accuracy": 0.75, "sparse/accuracy": 0.5, "seconds/train": 3.0})
        tracker.model(values)
        tracker.model(values)  # as after a call that was repeated
        run = str(tracker.run_id)
    (model,) = models_of(where)
    assert (model.name, str(model.status), model.source_run_id) == ("model", "READY", run)
    assert model.model_type == "text-classification"
    assert model.params == {"model": "small", "seed": "0"}
    assert {metric.key: metric.value for metric in model.metrics} == {"dense/accuracy": 0.75, "sparse/accuracy": 0.5}
    client, _ = tracking.connect(where)
    assert outputs(client, run) == [model.model_id]
    assert len(client.get_metric_history(run, "sparse/accuracy")) == 1
    shutil.rmtree(tmp_path / "model")  # the copy is enough
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where.store)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run}/model")
    read, given = loaded.metadata.get_input_schema(), loaded.input_example
    assert read is not None
    assert given is not None
    assert read.to_dict() == [{"type": "string", "name": "message", "required": True}]
    assert '"name": "label"' in str(loaded.metadata.to_dict()["signature"]["outputs"])
    assert given.to_dict("list") == values["example"]
    assert loaded.predict(given)["label"][0].startswith("class ")
    files = [file.name for file in Path(model.artifact_location.removeprefix("file://")).rglob("*")]
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".bin", ".py"))]


def test_a_model_that_a_killed_process_began_is_completed(
    where: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = logged(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "finalize_logged_model", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt), tracking.start(where, "name", tags(tmp_path)) as tracker:
            tracker.model(values)
    (begun,) = models_of(where)
    assert str(begun.status) == "PENDING"
    with tracking.start(where, "name", tags(tmp_path), resumes=True) as tracker:
        tracker.model(values)
        run = str(tracker.run_id)
    (model,) = models_of(where)
    assert (model.model_id, str(model.status)) == (begun.model_id, "READY")
    client, _ = tracking.connect(where)
    assert outputs(client, run) == [model.model_id]


def test_a_model_waits_in_the_outbox_of_a_run(where: Tracking, tmp_path: Path) -> None:
    values = logged(tmp_path, Logging.copy)
    header = Header(where.store, where.experiment, "name", tags(tmp_path), None, outbox.now())
    waiting = Outbox.create(tmp_path / outbox.NAME, header)
    for operation in (Operation("metrics", [["sparse/accuracy", 0.5, 1, 0]]), Operation("model", values),
                      Operation("end", ["FINISHED", 2])):  # fmt: skip
        waiting.add(operation)
    run = send(where, tmp_path)
    (model,) = models_of(where)
    assert (model.source_run_id, str(model.status)) == (run, "READY")
    assert list(Path(model.artifact_location.removeprefix("file://")).rglob("model.safetensors"))


def test_a_store_without_models_loses_no_run(
    where: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*given: Any, **named: Any) -> None:
        raise MlflowException("No endpoint /api/2.0/mlflow/logged-models")

    monkeypatch.setattr(MlflowClient, "search_logged_models", missing)
    with tracking.start(where, "name", tags(tmp_path)) as tracker:
        tracker.model(logged(tmp_path))
    client, _ = tracking.connect(where)
    assert client.get_run(str(tracker.run_id)).info.status == "FINISHED"
    assert "MLflow does not get the model of this run" in caplog.text


def test_a_finished_run_answers_all_its_examples_from_mlflow(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = finished_run.glob(f"outputs/*/{FILE}")
    result = Result.load(file)
    assert result is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished_run}/mlflow.db")
    loaded = mlflow.pyfunc.load_model(f"runs:/{result.mlflow_run}/model")
    read = Demo(path="generated", train_examples=64, eval_examples=60).read(train=False).evaluation
    table = pd.DataFrame({"question": read["question"], "context": read["context"]})
    predictions = json.loads((file.parent / columns.PREDICTIONS).read_text())
    assert loaded.predict(table)["answer"].tolist() == [predictions[id] for id in read["id"]]
    assert not list(finished_run.glob("mlartifacts/models/**/*.safetensors"))  # a link takes no space

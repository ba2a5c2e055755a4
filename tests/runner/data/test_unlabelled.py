"""Training examples without labels: where they come from, what is left out of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from runner.data.classification import Classify
from runner.data.demo import Demo
from runner.data.examples import Examples
from runner.data.features import Features, with_unlabelled
from runner.data.question_answering import Span
from runner.data.tagging import Tag
from runner.system.errors import UserError
from tests.tools.pretrain_tiny import build_tokenizer

TRAIN = "text,label\n" + "".join(f"train {i},{'good' if i % 2 else 'bad'}\n" for i in range(20))
DEV = "text,label\ndev one,good\ndev two,bad\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of text classification, with a file that is in no split."""
    place = tmp_path / "data"
    place.mkdir()
    (place / "train.csv").write_text(TRAIN)
    (place / "dev.csv").write_text(DEV)
    (place / "more.csv").write_text("text,date\nmore one,1\nmore two,2\ndev one,3\nmore three,4\n")
    return place


def texts(read: Examples) -> list[str]:
    assert read.unlabelled is not None
    assert set(read.unlabelled.column_names) == {"text", "id"}
    return list(read.unlabelled["text"])


def classify(folder: Path, unlabelled: str | Path, **others: Any) -> Classify:
    return Classify(path=str(folder), unlabelled=str(unlabelled), **others)


def test_a_file_of_the_datasets_folder_is_named_by_its_name_or_its_path(folder: Path) -> None:
    for name in ("more", "more.csv", folder / "more.csv"):
        read = classify(folder, name).read()
        assert texts(read) == ["more one", "more two", "more three"]  # "dev one" is scored
        assert read.unused == []
        assert "unlabelled: " in read.origin
        assert read.train is not None
        assert len(read.train) == 20
    assert Classify(path=str(folder)).read().unused == ["more.csv"]


def test_texts_one_a_line_json_parquet_and_folders_of_them(folder: Path, tmp_path: Path) -> None:
    rows = [{"text": "a b"}, {"text": "c, d"}]
    place = tmp_path / "unlabelled"
    place.mkdir()
    (place / "a.txt").write_text("a b\n\n  \nc, d\r\n")
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "c.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    expected = classify(folder, tmp_path / "b.jsonl").read()
    assert texts(expected) == ["a b", "c, d"]
    for source in (place / "a.txt", tmp_path / "c.parquet", tmp_path / "saved", place):
        read = classify(folder, source).read()
        assert texts(read) == ["a b", "c, d"]
        assert read.unlabelled_fingerprint == expected.unlabelled_fingerprint
    (tmp_path / "unlabelled" / "b.csv").write_text("text\ne\n")
    assert texts(classify(folder, tmp_path / "unlabelled").read()) == ["a b", "c, d", "e"]


def test_train_is_what_is_not_used_with_its_labels(folder: Path) -> None:
    whole = Classify(path=str(folder)).read()
    for others in ({}, {"validation": 0.2}, {"holdout": 0.2}):
        task = classify(folder, "train", max_train_samples=5, **others)
        read = task.read()
        parts = [read.train, read.unlabelled, *([read.validation] if "validation" in others else [])]
        parts += [read.evaluation] if "holdout" in others else []
        seen = [text for part in parts if part is not None for text in part["text"]]
        assert sorted(seen) == sorted(whole.train["text"])  # type: ignore[index]
        assert read.train is not None
        assert len(read.train) == 5
    assert task.read(train=False).unlabelled is None
    with pytest.raises(UserError, match=r"all 20 training examples are used .* set dataset.max_train_samples"):
        classify(folder, "train").read()


def test_examples_of_train_without_a_label_are_used(folder: Path) -> None:
    (folder / "train.csv").write_text(TRAIN + "nobody knows,\n")
    read = classify(folder, "train", drop_unlabelled=True).read()
    assert texts(read) == ["nobody knows"]


def test_a_subset_is_drawn_by_the_datas_seed(folder: Path) -> None:
    (folder / "more.csv").write_text("text\n" + "".join(f"more {i}\n" for i in range(30)))
    ways = [texts(classify(folder, "more", max_unlabelled_samples=7, data_seed=seed).read()) for seed in (0, 0, 1)]
    assert ways[0] == ways[1] != ways[2]
    assert [len(set(way)) for way in ways] == [7, 7, 7]


def test_the_split_of_a_saved_dataset(folder: Path, tmp_path: Path) -> None:
    splits = {
        name: datasets.Dataset.from_csv(str(folder / f"{name}.csv"), cache_dir=str(tmp_path / "cache"))
        for name in ("train", "dev")
    }
    more = datasets.Dataset.from_list([{"text": "unknown", "label": "neither"}])
    datasets.DatasetDict({**splits, "unsupervised": more}).save_to_disk(str(tmp_path / "saved"))  # type: ignore[arg-type]
    read = classify(tmp_path / "saved", "unsupervised").read()
    assert texts(read) == ["unknown"]
    assert read.unused == []
    assert read.train is not None
    assert read.train.features["label"].names == ["bad", "good"]  # the third class is no class
    with pytest.raises(UserError, match=r"dataset.unlabelled=dev: a model is not scored on what it is trained on"):
        classify(tmp_path / "saved", "dev").read()
    with pytest.raises(UserError, match=r"dataset.unlabelled=nope: there is no such .*splits are train .*unsupervised"):
        classify(tmp_path / "saved", "nope").read()
    with pytest.raises(UserError, match="this folder has splits; name the folder of one"):
        classify(folder, tmp_path / "saved").read()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", "words\na\n", 'there is no column "text"'),
        ("x.csv", "text\ndev one\ndev two\n", "there are no examples but those that are scored"),
        ("x.jsonl", '{"text": "a"}\n{"text": 5}', "is of another type than the rows above it"),
        ("x.jsonl", '{"text": "a"}\n{"text": null}', r"x.jsonl, line 2: column text: 1 of 2 values are not text"),
        ("x.jsonl", '{"text": ["a"]}', "column text holds lists"),
        ("x.xml", "<a/>", r"x.xml: this type of file cannot be read; those that can are .csv, .*.txt"),
        ("x.txt", "\n", "there are no examples"),
        ("empty/.hidden.csv", "text\na\n", "this folder has no .csv"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(folder: Path, name: str, content: str, problem: str) -> None:
    file = folder.parent / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)
    with pytest.raises(UserError, match=problem):
        classify(folder, file.parent if "/" in name else file).read()


def test_sentences_without_tags(tmp_path: Path) -> None:
    (tmp_path / "train.conll").write_text("Ann B-PER\nsings O\n\nBob B-PER\n\nhe O\ncan O\n\n" * 4)
    (tmp_path / "dev.conll").write_text("Eve B-PER\n\n")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "words.conll").write_text("Tom\nruns\n\nEve\n\nnow\n")
    (tmp_path / "x" / "tagged.conll").write_text("Jim X\nwalks Y\n")
    read = Tag(path=str(tmp_path), unlabelled=str(tmp_path / "x")).read()
    assert read.unlabelled is not None
    assert read.unlabelled["tokens"][:] == [["Jim", "walks"], ["Tom", "runs"], ["now"]]
    (tmp_path / "more.jsonl").write_text('{"tokens": []}\n{"tokens": ["a"]}')
    with pytest.raises(UserError, match=r"more.jsonl, line 1: column tokens: there are no words"):
        Tag(path=str(tmp_path), unlabelled=str(tmp_path / "more.jsonl")).read()


def test_questions_without_answers(tmp_path: Path) -> None:
    def squad(name: str, paragraphs: int, answers: bool) -> None:
        made = [
            {"context": f"{name} {i} is red.", "qas": [{"id": f"{name}{i}", "question": "What colour?"} | (
                {"answers": [{"text": "red", "answer_start": len(f"{name} {i} is ")}]} if answers else {})]}
            for i in range(paragraphs)
        ]  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": [{"paragraphs": made}]}))

    squad("train", 12, True)
    squad("dev", 3, True)
    squad("more", 4, False)
    read = Span(path=str(tmp_path), unlabelled="more").read()
    assert read.unlabelled is not None
    assert read.unlabelled["context"][:] == [f"more {i} is red." for i in range(4)]
    assert "answers" not in read.unlabelled.column_names


@pytest.mark.parametrize("kind", ["span", "classify", "regression", "tag"])
def test_features_without_labels_have_null_for_them(tmp_path: Path, kind: str) -> None:
    (tmp_path / "train.jsonl").write_text(
        "\n".join(json.dumps({"text": f"t {i}", "label": i % 2, "tokens": ["a", "b"], "ner_tags": ["O", "B-X"]})
                  for i in range(12))
    )  # fmt: skip
    (tmp_path / "dev.jsonl").write_text(
        "\n".join(json.dumps({"text": f"d {i}", "label": i, "tokens": ["c"], "ner_tags": ["B-X"]}) for i in (0, 1))
    )
    tasks = {
        "span": Demo(train_examples=24, eval_examples=8, max_train_samples=8),
        "classify": Classify(path=str(tmp_path), max_train_samples=8),
        "regression": Classify(path=str(tmp_path), max_train_samples=8, regression=True, metric="pearson"),
        "tag": Tag(path=str(tmp_path), max_train_samples=8),
    }
    task, tokenizer = tasks[kind], build_tokenizer()
    task.unlabelled = "train"
    read = task.read()
    assert read.train is not None
    assert read.unlabelled is not None
    labelled = task.features(read.train, tokenizer, None, labels=True)
    more = Features(task, tokenizer, False, "unlabelled").of(read.unlabelled, read.unlabelled_fingerprint, None)
    both = with_unlabelled(labelled, more)
    assert both.column_names == labelled.column_names
    assert both._fingerprint == with_unlabelled(labelled, more)._fingerprint != labelled._fingerprint
    for name in labelled.column_names:
        values = both[name][:]
        assert values[: len(labelled)] == labelled[name][:]
        expected = [None] * len(more) if name in task.label_names else more[name][:]
        assert values[len(labelled) :] == expected
    assert task.digest(both) != task.digest(labelled)
    texts: list[Any] = [
        read.unlabelled[name][0] for name in reversed(task.inputs) if name in read.unlabelled.column_names
    ]
    texts = [" ".join(text) if isinstance(text, list) else str(text) for text in texts]  # "question" comes first
    assert more["input_ids"][0] == tokenizer(texts[0], texts[1] if len(texts) > 1 else None)["input_ids"]

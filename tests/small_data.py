"""The datasets of `conf/dataset/` in small, with the columns and kinds of the real ones, in a hub's folder."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, Value

WORDS = ("blue", "red", "green", "fast", "slow", "old", "new", "warm", "cold", "small")

_YES_NO = ("entailment", "not_entailment")
_THREE = ("entailment", "neutral", "contradiction")
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "cola": (("sentence",), ("unacceptable", "acceptable")),
    "sst2": (("sentence",), ("negative", "positive")),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "stsb": (("sentence1", "sentence2"), None),
    "mnli": (("premise", "hypothesis"), _THREE),
    "qnli": (("question", "sentence"), _YES_NO),
    "rte": (("sentence1", "sentence2"), _YES_NO),
}
"""Columns of text and classes of GLUE's configurations, as the hub's `nyu-mll/glue` has them; None: a number."""


def _sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(3, 9)))


def _split(texts: tuple[str, ...], classes: tuple[str, ...] | None, count: int, seed: str, idx: bool) -> Any:
    chance = random.Random(seed)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {name: _sentence(chance) for name in texts}
        row["label"] = chance.uniform(0, 5) if classes is None else chance.randrange(len(classes))
        rows.append(row | ({"idx": i} if idx else {}))
    features: dict[str, Any] = dict.fromkeys(texts, Value("string"))
    features["label"] = Value("float32") if classes is None else ClassLabel(names=list(classes))
    return datasets.Dataset.from_list(rows, features=Features(features | ({"idx": Value("int32")} if idx else {})))


def _write(repository: Path, configs: Mapping[str, Mapping[str, datasets.Dataset]]) -> None:
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for name, split in splits.items():
            file = repository / config / f"{name}-00000-of-00001.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            split.to_parquet(file)
            lines += [f"  - split: {name}", f"    path: {config}/{name}-*"]
    (repository / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
"""Of CoNLL-2003, in the hub's order."""


def _questions(count: int, unanswerable: bool) -> Any:
    """Of SQuAD; every third one without an answer if they may have none."""
    rows = []
    for i in range(count):
        name, place = f"Ada{i}", f"Rome{i}"
        answers = {"text": [place], "answer_start": [len(name) + 10]}
        if unanswerable and i % 3 == 0:
            answers = {"text": [], "answer_start": []}
        rows.append({"id": f"q{i}", "title": "t", "context": f"{name} lives in {place}", "question": "where",
                     "answers": answers})  # fmt: skip
    answers = {"text": datasets.List(Value("string")), "answer_start": datasets.List(Value("int32"))}
    texts = dict.fromkeys(("id", "title", "context", "question"), Value("string"))
    return datasets.Dataset.from_list(rows, features=Features(texts | {"answers": answers}))


def _sentences(count: int) -> Any:
    """Of CoNLL-2003."""
    tags = datasets.List(ClassLabel(names=list(TAGS)))
    features = Features({"id": Value("string"), "tokens": datasets.List(Value("string")), "ner_tags": tags})
    rows = [{"id": str(i), "tokens": ["Ada", "lives", "here"], "ner_tags": [1, 0, 0]} for i in range(count)]
    return datasets.Dataset.from_list(rows, features=features)


def make(hub: Path) -> Path:
    """Write all of them below `hub/datasets`: 60 training and 20 evaluation examples each."""
    configs = {}
    for config, (texts, classes) in TABLES.items():
        names = ["validation_matched", "validation_mismatched"] if config == "mnli" else ["validation"]
        counts = {"train": 60, **dict.fromkeys(names, 20)}
        configs[config] = {name: _split(texts, classes, n, f"{config} {name}", idx=True) for name, n in counts.items()}
        # GLUE hides the labels of its test splits.
        configs[config]["test"] = configs[config]["train"].select(range(5)).map(lambda row: {"label": -1})
    _write(hub / "datasets/nyu-mll/glue", configs)
    texts = ("premise", "hypothesis")
    snli = {name: _split(texts, _THREE, n, name, idx=False) for name, n in (("train", 60), ("validation", 20))}
    # Pairs on which the annotators did not agree.
    snli["train"] = snli["train"].map(lambda row, i: {"label": -1 if i % 20 == 0 else row["label"]}, with_indices=True)
    _write(hub / "datasets/stanfordnlp/snli", {"plain_text": snli})
    for name, config, unanswerable in (("squad", "plain_text", False), ("squad_v2", "squad_v2", True)):
        splits = {split: _questions(n, unanswerable) for split, n in (("train", 60), ("validation", 20))}
        _write(hub / "datasets/rajpurkar" / name, {config: splits})
    sentences = {name: _sentences(n) for name, n in (("train", 60), ("validation", 20), ("test", 20))}
    _write(hub / "datasets/lhoestq/conll2003", {"default": sentences})
    return hub

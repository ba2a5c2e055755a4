"""Data files: splits by their names, layouts of folders, tables and JSON as programs write them, what is no file."""

import gzip
import json
import logging
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.classification import Classify
from runner.data.examples import Examples
from runner.data.files import read
from runner.data.layout import kinds_of
from runner.data.question_answering import Span
from runner.data.tagging import Tag
from runner.data.text_files import place
from runner.stages.announce import announce_data
from runner.system.errors import UserError
from runner.system.files import check_regular
from tests.conftest import Refused, save_small_model


def rows(name: str, count: int) -> list[dict[str, str]]:
    """Records whose texts name their file."""
    return [{"text": f"{name} {i}", "label": ("good", "bad")[i % 2]} for i in range(count)]


def csv(table: list[dict[str, str]], delimiter: str = ",", end: str = "\n") -> str:
    lines = [delimiter.join(table[0]), *(delimiter.join(row.values()) for row in table)]
    return "".join(line + end for line in lines)


def write(folder: Path, **counts: int) -> Path:
    """Files with as many rows, by their paths; `__` is a slash, and a name without a suffix is a CSV file."""
    for name, count in counts.items():
        file = folder / name.replace("__", "/")
        file = file if file.suffix else file.with_name(f"{file.name}.csv")
        file.parent.mkdir(parents=True, exist_ok=True)
        table = rows(file.name, count)
        if file.suffix == ".parquet":
            datasets.Dataset.from_list(table).to_parquet(file)
        else:
            file.write_text(csv(table))
    return folder


def origins(examples: Examples) -> tuple[set[str], set[str]]:
    """The names of the files that train and evaluation examples came from."""
    assert examples.train is not None
    train, evaluation = ({text.split()[0] for text in part["text"]} for part in (examples.train, examples.evaluation))
    return train, evaluation


def read_and_announced(path: Path | str, **options: Any) -> Examples:
    """The examples, after what a run and a dry run show of them."""
    task = Classify(path=str(path), **options)
    examples = task.read()
    announce_data(task, examples)
    return examples


def problem(path: Path, train: bool = True, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        Classify(path=str(path), **options).read(train)
    return str(caught.value)


# --- splits by their names ----------------------------------------------------------------------------------

NAMES = ["val", "eval", "evaluation", "validate", "validation", "valid", "val_set", "val-set", "dev", "dev-set",
         "devel", "valset", "evalset", "my_eval_2", "ReviewsVal", "evalData", "VAL"]  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input(
        "A2", f"{name}.csv next to train.csv", before="not read: a tenth of train was scored" if name not in
        ("validation", "valid", "dev", "dev-set") else "read", after="scored, and named as the evaluation split"))
    for name in NAMES
])  # fmt: skip
def test_an_evaluation_file_is_scored(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read = read_and_announced(write(tmp_path, train=20, **{name: 4}))
    assert origins(read) == ({"train.csv"}, {f"{name}.csv"})
    assert f"training: {tmp_path}/train.csv (20); " in caplog.text
    assert f": {tmp_path}/{name}.csv (4)" in caplog.text
    assert "not used" not in caplog.text


@pytest.mark.bad_input("A2", "val.csv and test.csv next to train.csv", before="test.csv was scored, val.csv ignored",
                       after="val.csv is scored, and test.csv named as not used")  # fmt: skip
@pytest.mark.parametrize(("best", "others"), [("val", ["test"]), ("dev", ["eval", "test"]), ("eval", ["test"])])
def test_the_preferred_split_is_scored(
    best: str, others: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        read = read_and_announced(write(tmp_path, train=20, **dict.fromkeys([best, *others], 4)))
    assert origins(read)[1] == {f"{best}.csv"}
    assert f"not used: {', '.join(f'{name}.csv' for name in others)} (dataset.train_split" in caplog.text


@pytest.mark.bad_input("A2", "holdout.csv and val.xlsx next to train.csv", before="ignored without a word",
                       after="a warning names them, because a tenth of train is scored")  # fmt: skip
def test_files_that_are_left_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, train=20, holdout=4)
    (tmp_path / "val.xlsx").write_bytes(b"PK")
    (tmp_path / "._train.csv").write_bytes(b"\x00\x05\x16\x07")  # AppleDouble, which macOS adds
    (tmp_path / "README.md").write_text("about the data")
    with caplog.at_level(logging.INFO):
        read = read_and_announced(tmp_path)
    assert origins(read) == ({"train.csv"}, {"train.csv"})
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("not used: holdout.csv, val.xlsx (")
    assert f"{tmp_path} has no evaluation split: 0.1 of train becomes it" in caplog.text


def test_a_split_that_a_hold_out_replaces_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read = read_and_announced(write(tmp_path, train=20, val=4), holdout=0.2)
    assert origins(read) == ({"train.csv"}, {"train.csv"})
    assert f"not used: {tmp_path}/val.csv (" in caplog.text
    assert "validation: " not in caplog.text


@pytest.mark.bad_input("A2", "dataset.path=train.csv, with val.csv in the same folder",
                       before="a tenth of train was scored", after="a warning names val.csv")  # fmt: skip
def test_a_file_next_to_the_only_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, train=20, val=4, more=4)
    read_and_announced(tmp_path / "train.csv")
    assert "not used: val.csv in the same folder, whose name says validation" in caplog.text
    assert "more.csv" not in caplog.text


@pytest.mark.parametrize(("splits", "train", "scored"), [
    pytest.param(splits, train, scored, marks=pytest.mark.bad_input(
        "A2", f"hub splits {', '.join(splits)}", before=before, after=f"{', '.join(scored)} scored"))
    for splits, train, scored, before in [
        (["train", "val"], "train", ["val"], "a tenth of train was scored"),
        (["train", "eval", "test"], "train", ["eval"], "test was scored"),
        (["train", "validation_matched", "validation_mismatched"], "train",
         ["validation_matched", "validation_mismatched"], "a tenth of train was scored"),
        (["training", "dev-set"], "training", ["dev-set"], "refused: no usual name"),
    ]
])  # fmt: skip
def test_splits_of_the_hub(
    splits: list[str], train: str, scored: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tables = {name: datasets.Dataset.from_list(rows(name, 20)) for name in splits}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(**tables))
    with caplog.at_level(logging.INFO):
        read = read_and_announced("someone/reviews")
    assert origins(read) == ({train}, set(scored))
    assert f"training: someone/reviews, {train} split (20); {scored[0]}: " in caplog.text
    assert ("not used: test" in caplog.text) == ("test" in splits)


@pytest.mark.bad_input("A2", "dataset.train_split=validation of a hub dataset", after="another split is scored",
                       before="trained and scored on validation")  # fmt: skip
def test_the_training_split_is_never_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tables = {name: datasets.Dataset.from_list(rows(name, 20)) for name in ("train", "validation", "test")}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(**tables))
    read = Classify(path="someone/reviews", train_split="validation").read()
    assert origins(read) == ({"validation"}, {"test"})
    for path in (Path("someone/reviews"), write(tmp_path, train=20)):
        assert "a model is not scored on what it is trained on" in problem(path, evaluation_splits=["train"])
    assert len(Classify(path=str(tmp_path), evaluation_splits=["train"]).read(train=False).evaluation) == 20


AMBIGUOUS: dict[str, tuple[dict[str, int], dict[str, Any], str, str]] = {
    "train_dev.csv next to train.csv": (
        {"train": 20, "train_dev": 4}, {}, "train_dev.csv says train and validation; rename it, or set",
        "trained on both",
    ),
    "train.csv, and train/part.csv": (
        {"train": 20, "train__part": 4}, {}, "are in different folders, and their names say that they are one split",
        "only train.csv was read",
    ),
    "cola/train.csv and sst2/train.csv": (
        {"cola__train": 20, "sst2__train": 20}, {}, "several of its folders have splits: cola, sst2; set dataset.path",
        "refused: no file in this folder",
    ),
    "train.csv and train.CSV.gz": (
        {"train": 20, "train.CSV.gz": 20}, {}, "have the same name: if both hold the same data, remove one",
        "only train.csv was read; of train.csv and train.json both",
    ),
    "train-00000-of-00003.parquet alone": (
        {"train-00000-of-00003.parquet": 9}, {}, "train-00001-of-00003: this part is missing, with 2 of 3 in all",
        "trained on a third",
    ),
    "dataset.train_split=reviews of reviews_train.csv and reviews_dev.csv": (
        {"reviews_train": 20, "reviews_dev": 4}, {"train_split": "reviews"}, "dataset.train_split=reviews: it fits ",
        "trained on both, and a tenth of both was scored",
    ),
    "dataset.evaluation_splits=[test,dev#1]": (
        {"train": 20, "dev#1": 4, "test": 4}, {"evaluation_splits": ["test", "dev#1"]},
        "'dev#1' becomes part of names of metrics, where MLflow takes letters, digits",
        "MLflow's traceback after training",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input("C1" if "#" in name else "A2", name, before=AMBIGUOUS[name][3],
                                                   after="refused, with the files' names"))
    for name in AMBIGUOUS
])  # fmt: skip
def test_what_is_ambiguous_is_refused(name: str, tmp_path: Path) -> None:
    counts, options, message, _ = AMBIGUOUS[name]
    assert message in problem(write(tmp_path, **counts), **options)


def test_words_of_splits_are_whole_words() -> None:
    assert [kinds_of(name) for name in ("latest", "device", "evaluate2", "interval", "values", "pretrain")] == [
        [], [], ["evaluation"], [], [], [],
    ]  # fmt: skip
    assert kinds_of("eng.testa") == ["test"]
    assert kinds_of("medieval_retrain") == []


# --- folders ------------------------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[dict[str, int], set[str], set[str]]] = {
    "data/train-00000-of-00002.parquet": (
        {"data__train-00000-of-00002.parquet": 10, "data__train-00001-of-00002.parquet": 10,
         "data__test-00000-of-00001.parquet": 4},
        {"train-00000-of-00002.parquet", "train-00001-of-00002.parquet"}, {"test-00000-of-00001.parquet"},
    ),
    "train/ and test/": ({"train__part1": 10, "train__part2": 10, "test__part": 4}, {"part1.csv", "part2.csv"},
                         {"part.csv"}),
    "data/Train/ and data/val_set/": ({"data__Train__a": 20, "data__val_set__b": 4}, {"a.csv"}, {"b.csv"}),
    "training_data/train.csv and training_data/dev.csv": (
        {"training_data__train": 20, "training_data__dev": 4}, {"train.csv"}, {"dev.csv"},
    ),
    "train.csv and test/part.csv": ({"train": 20, "test__part": 4}, {"train.csv"}, {"part.csv"}),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input(
        "C1", name, after="read", before="a tenth of train was scored" if name.startswith("train.csv") else
        "refused: no file in this folder"))
    for name in LAYOUTS
])  # fmt: skip
def test_layouts_of_folders(name: str, tmp_path: Path) -> None:
    counts, train, scored = LAYOUTS[name]
    read = Classify(path=str(write(tmp_path, **counts))).read()
    assert origins(read) == (train, scored)
    assert read.train is not None
    assert (len(read.train), len(read.evaluation)) == (20, 4)


@pytest.mark.bad_input("C1", "a DatasetDict of save_to_disk", before="refused: no file name says which split it is",
                       after="read")  # fmt: skip
def test_a_saved_dataset_dict(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("large_string"), "label": datasets.ClassLabel(names=["b", "a"])}
    )
    tables = {
        name: datasets.Dataset.from_dict(
            {"text": [f"{name} {i}" for i in range(n)], "label": [0, 1] * (n // 2)}, features
        )
        for name, n in (("train", 20), ("val", 4), ("test", 6))
    }
    datasets.DatasetDict(**tables).save_to_disk(tmp_path / "saved", num_shards={"train": 2, "val": 1, "test": 1})
    read = Classify(path=str(tmp_path / "saved")).read()
    assert origins(read) == ({"train"}, {"val"})
    assert read.evaluation.features["label"].names == ["b", "a"]
    assert "has no split dev; it has train, val, test" in problem(tmp_path / "saved", evaluation_splits=["dev"])
    assert "saved has splits of its own; set dataset.path to it" in problem(tmp_path)
    next((tmp_path / "saved/val").glob("*.arrow")).write_bytes(b"ARROW1")
    assert "this folder of save_to_disk cannot be read" in problem(tmp_path / "saved")


@pytest.mark.bad_input("C1", "a Dataset of save_to_disk", before="refused: no file name says which split it is",
                       after="read as a single file is")  # fmt: skip
def test_a_saved_dataset(tmp_path: Path) -> None:
    for name in ("reviews", "test"):
        datasets.Dataset.from_list(rows(name, 20)).save_to_disk(tmp_path / name)
    assert origins(Classify(path=str(tmp_path), train_split="reviews").read()) == ({"reviews"}, {"test"})
    read = Classify(path=str(tmp_path / "reviews")).read()
    assert read.train is not None
    assert (len(read.train), len(read.evaluation), read.has_split) == (18, 2, False)
    assert "has no train split" in problem(tmp_path / "test")
    assert len(Classify(path=str(tmp_path / "test")).read(train=False).evaluation) == 20


@pytest.mark.bad_input("C1", "a folder that has no data, or only files of other types",
                       before="refused without the files' names", after="refused with them")  # fmt: skip
def test_folders_without_data(tmp_path: Path) -> None:
    assert "this folder has no .csv, .tsv, .json, .jsonl, .parquet file" in problem(tmp_path)
    (tmp_path / "train.xlsx").write_bytes(b"PK")
    assert problem(tmp_path).endswith("file; it has train.xlsx")
    write(tmp_path, reviews=3)
    assert "no file name says which split it is (there is reviews.csv, train.xlsx): name" in problem(tmp_path)


@pytest.mark.parametrize(("path", "message"), [
    pytest.param(path, message, marks=pytest.mark.bad_input(
        "C1", f"dataset.path={path[:22]}...", before="a traceback", after="refused"))
    for path, message in [("~nobody-of-this-name/x", "there is no such file or folder"),
                          ("x" * 5000, "cannot be read: File name too long")]
])  # fmt: skip
def test_paths_that_no_system_takes(path: str, message: str) -> None:
    assert message in problem(Path(path))


# --- CSV ----------------------------------------------------------------------------------------------------

TABLES: dict[str, tuple[str, str | bytes, str]] = {
    "a column without a name (pandas' index)": ("dev.csv", ",text,label\n0,x,good\n1,y,bad\n", "read"),
    "two columns without a name": ("dev.csv", ",text,,label\n0,x,1,good\n1,y,2,bad\n", "refused"),
    "a repeated column that nobody asks for": ("dev.csv", "note,text,note,label\n1,x,2,good\n1,y,2,bad\n", "refused"),
    "a delimiter after each line": ("dev.csv", "text,label,\nx,good,\ny,bad,\n", "read"),
    "; as delimiter": ("dev.csv", 'text;label\nx;good\n"y";bad\n', "refused: there is no column"),
    "a tab as delimiter of a .csv": ("dev.csv", "text\tlabel\nx\tgood\ny\tbad\n", "refused: there is no column"),
    "a comma as delimiter of a .tsv": ("dev.tsv", "text,label\nx,good\ny,bad\n", "refused: there is no column"),
    "; with a comma in a quoted name": ("dev.csv", '"a, b";text;label\n1;x;good\n2;y;bad\n', "refused"),
    "a .csv.gz": ("dev.csv.gz", gzip.compress(b"text,label\nx,good\ny,bad\n"), "not found in the folder"),
    "a .jsonl.gz": (
        "dev.jsonl.gz",
        gzip.compress(b'{"text":"x","label":"good"}\n{"text":"y","label":"bad"}'),
        "not found in the folder",
    ),
    "UTF-16 of Excel": ("dev.csv", "text\tlabel\r\nx\tgood\r\ny\tbad\r\n".encode("utf-16"), "refused: not UTF-8"),
    "UTF-8 with a byte order mark": ("dev.csv", "text;label\nx;good\ny;bad\n".encode("utf-8-sig"), "refused"),
    "CRLF": ("dev.csv", "text,label\r\nx,good\r\n\r\ny,bad\r\n", "read"),
    "no line end at the end": ("dev.csv", "text,label\nx,good\ny,bad", "read"),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input("C1", name, before=TABLES[name][2], after="read"))
    for name in TABLES
])  # fmt: skip
def test_tables_as_programs_write_them(name: str, tmp_path: Path) -> None:
    file, content, _ = TABLES[name]
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    for path in (tmp_path, tmp_path / file):
        read = Classify(path=str(path)).read(train=False).evaluation
        assert list(read["text"]) == ["x", "y"]
        assert [read.features["label"].names[i] for i in read["label"]] == ["good", "bad"]


@pytest.mark.bad_input("C1", "a CSV file with a repeated column that is asked for", before="refused",
                       after="refused; one of them can be named")  # fmt: skip
def test_a_repeated_column_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text("text,label,label\nx,good,a\ny,bad,b\n")
    message = problem(tmp_path, train=False)
    assert 'there is no column "label"; it has text, label (column 2), label (column 3). Name' in message
    read = Classify(path=str(tmp_path), label="label (column 3)").read(train=False).evaluation
    assert read.features["label"].names == ["a", "b"]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("dev.csv", b"", "dev.csv: the file is empty; its first line must hold the names"),
    "an empty .csv.gz": ("dev.csv.gz", gzip.compress(b" \n"), "dev.csv.gz: the file is empty"),
    "only a header": ("dev.csv", b"text;label\n", "dev.csv: there are no examples"),
    "a .csv.gz that is no gzip": ("dev.csv.gz", b"text,label\n", "dev.csv.gz cannot be decompressed: Not a gzipped"),
    "a .csv.gz that is cut": ("dev.csv.gz", gzip.compress(b"text,label\n" * 9)[:30], "dev.csv.gz cannot be decom"),
    "UTF-16 without a byte order mark": (
        "dev.csv", "text,label\nx,good\n".encode("utf-16-le"), "dev.csv, line 1: this is not text in UTF-8 (",
    ),
    "a binary file": ("dev.csv", b"\x80\x81", "dev.csv, line 1: this is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input(
        "C1", name, before="refused" if "gz" not in name else "not found", after="refused by name"))
    for name in BROKEN
])  # fmt: skip
def test_broken_tables(name: str, tmp_path: Path) -> None:
    file, content, message = BROKEN[name]
    (tmp_path / file).write_bytes(content)
    assert message in problem(tmp_path, train=False)


LINES = 'text,label\nx,good\n"two\nlines",bad\n\n"and ""three""\r\n\r\nlines",good\n'


@pytest.mark.parametrize(("last", "message"), [
    pytest.param(last, message, marks=pytest.mark.bad_input(
        "C1", f"line 9 is {last!r}, after quoted line ends and an empty line", before="row 4", after="line 9"))
    for last, message in [
        ("y,goood", "dev.csv, line 9: column label: 'goood' is not one of the classes bad, good"),
        ("y,", "dev.csv, line 9: column label: 1 of 4 examples have no label"),
        ("y", "dev.csv, line 9: 1 columns, where the first line has 2: 'y'; quote fields"),
    ]
])  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_lines_are_those_of_an_editor(delimiter: str, last: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_bytes(f"{LINES}{last}\n".replace(",", delimiter).encode())
    assert message in problem(tmp_path, train=False, labels=["bad", "good"])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    texts=st.lists(st.text('ab"\n\r,; \u2028\x0b', max_size=6), min_size=1, max_size=8),
    end=st.sampled_from(["\n", "\r\n"]),
    blank=st.integers(0, 2),
    delimiter=st.sampled_from([",", ";", "\t"]),
)
def test_each_row_is_at_its_line(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], end: str, blank: int, delimiter: str
) -> None:
    """The line of a row is the one at which its number stands, whatever is quoted above it."""
    file = tmp_path_factory.mktemp("lines") / "dev.csv"
    quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
    lines = [f"number{delimiter}text"] + [f"#{i}{delimiter}{text}" for i, text in enumerate(quoted)]
    file.write_bytes((end * blank + (end * (blank + 1)).join(lines)).encode())
    assert list(read(file, ["text"])["text"]) == texts
    as_edited = re.split("\r\n|\r|\n", file.read_bytes().decode())
    for row in range(len(texts)):
        line = int(place(str(file), row).rpartition(" ")[2])
        assert as_edited[line - 1].startswith(f"#{row}{delimiter}")


@pytest.mark.bad_input("C1", "a bad line of JSON lines after an empty one", before="row 2", after="line 4")
def test_lines_of_json_lines(tmp_path: Path) -> None:
    good, bad = '{"text": "x", "label": "good"}', '{"text": "x", "label": "oops"}'
    (tmp_path / "dev.jsonl").write_text(f"{good}\n\n\r\n{bad}\n")
    assert "dev.jsonl, line 4: column label: 'oops'" in problem(tmp_path, train=False, labels=["bad", "good"])


# --- JSON ---------------------------------------------------------------------------------------------------


def json_problem(folder: Path, content: Any, **options: Any) -> str:
    (folder / "dev.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        Span(path=str(folder), **options).read(train=False)
    return str(caught.value)


@pytest.mark.parametrize(("name", "wrapped"), [
    pytest.param("reviews", lambda table: {"data": table}, marks=pytest.mark.bad_input(
        "C1", '{"data": [records]}', before="refused: line 1", after="read")),
    pytest.param("table", lambda table: {"schema": {"fields": []}, "data": table}, marks=pytest.mark.bad_input(
        "C1", "pandas' to_json(orient='table')", before="refused: there is no column", after="read")),
])  # fmt: skip
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_records_below_data(name: str, wrapped: Callable, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"dev.{suffix}").write_text(json.dumps(wrapped(rows(name, 4)), indent=2))
    assert list(Classify(path=str(tmp_path)).read(train=False).evaluation["text"]) == [f"{name} {i}" for i in range(4)]


ANSWER = {"text": ["Rome"], "answer_start": [13]}
PLAIN = {"id": "a", "context": "Ada lives in Rome", "question": "where", "answers": ANSWER}
FORMS: dict[str, Any] = {
    "answers as a list of records": PLAIN | {"answers": [{"text": "Rome", "answer_start": 13}]},
    "answers as a list of records with other fields": PLAIN | {
        "answers": [{"answer_id": 7, "answer_start": 13, "text": "Rome"}]},
    "answer_start as text": PLAIN | {"answers": {"text": ["Rome"], "answer_start": ["13"]}},
    "answer_start as text in a list of records": PLAIN | {"answers": [{"text": "Rome", "answer_start": " 13"}]},
    "is_impossible=false": PLAIN | {"is_impossible": False},
}  # fmt: skip


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input(
        "C1", name, before="read" if "false" in name else "refused", after="read")) for name in FORMS
])  # fmt: skip
@pytest.mark.parametrize("below_data", [False, True])
def test_forms_of_answers(name: str, below_data: bool, tmp_path: Path) -> None:
    content = [FORMS[name], FORMS[name] | {"id": "b"}]
    (tmp_path / "dev.json").write_text(json.dumps({"data": content} if below_data else content))
    (tmp_path / "test.json").write_text(json.dumps([PLAIN, PLAIN | {"id": "b"}]))
    read, plain = (Span(path=str(tmp_path / name)).read(train=False) for name in ("dev.json", "test.json"))
    assert read.evaluation.to_list() == plain.evaluation.to_list()
    assert read.evaluation_fingerprint == plain.evaluation_fingerprint


@pytest.mark.bad_input("C1", "questions without ids, in SQuAD's JSON and in records", before="refused: KeyError('id')",
                       after="the number of the row is the id")  # fmt: skip
def test_ids_are_made(tmp_path: Path) -> None:
    questions = [{"question": f"where {i}", "answers": [{"text": "Rome", "answer_start": 13}]} for i in range(3)]
    squad = {"data": [{"paragraphs": [{"context": "Ada lives in Rome", "qas": questions}]}]}
    plain = {key: value for key, value in PLAIN.items() if key != "id"}
    for content in (squad, [plain] * 3, {"data": [plain] * 3}):
        (tmp_path / "dev.json").write_text(json.dumps(content))
        assert list(Span(path=str(tmp_path)).read(train=False).evaluation["id"]) == ["0", "1", "2"]
    assert 'there is no column "nr"' in json_problem(tmp_path, [plain], id="nr")
    questions[1]["id"] = "a"
    assert "dev.json: question 1 has no id, and others have" in json_problem(tmp_path, squad)


EMPTY = [{"text": [""], "answer_start": [-1]}, {"text": [""], "answer_start": [0]}, {"text": [], "answer_start": []},
         [{"text": "", "answer_start": -1}], [{"text": "", "answer_start": ""}], []]  # fmt: skip


@pytest.mark.bad_input("C1", "is_impossible=true with an empty answer", before="refused as misaligned",
                       after="a question without an answer")  # fmt: skip
@pytest.mark.parametrize("answers", EMPTY, ids=map(str, EMPTY))
@pytest.mark.parametrize("impossible", [True, 1, "True"])
def test_an_empty_answer_of_an_impossible_question(answers: Any, impossible: Any, tmp_path: Path) -> None:
    start: Any = "13" if answers and "answer_start': ''" in str(answers) else 13
    full = ANSWER if isinstance(answers, dict) else [{"text": "Rome", "answer_start": start}]
    flags = (impossible, type(impossible)(0)) if impossible != "True" else ("True", "False")
    content = [PLAIN | {"answers": answers, "is_impossible": flags[0]},
               PLAIN | {"id": "b", "answers": full, "is_impossible": flags[1]}]  # fmt: skip
    (tmp_path / "dev.json").write_text(json.dumps(content))
    read = Span(path=str(tmp_path), unanswerable=True).read(train=False).evaluation
    assert list(read["answers"]) == [{"text": [], "answer_start": []}, ANSWER]
    (tmp_path / "dev.json").write_text(json.dumps(content[:1]))
    assert Span(path=str(tmp_path), unanswerable=True).read(train=False).evaluation["answers"][0]["text"] == []
    assert "if 1 of them are meant to have no answer, dataset.unanswerable=true" in json_problem(tmp_path, content)


def test_an_empty_answer_in_squads_format_and_in_csv(tmp_path: Path) -> None:
    no_answer = {"id": "1", "question": "who", "is_impossible": True, "answers": [{"text": "", "answer_start": -1}]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ada", "qas": [no_answer]}]}]}))
    (tmp_path / "test.csv").write_text(
        "id,context,question,a,at,is_impossible\n1,Ada,who,,-1,True\n2,Ada,who,Ada,0,False\n"
    )
    options: dict[str, Any] = {"unanswerable": True}
    assert list(Span(path=str(tmp_path), **options).read(False).evaluation["answers"]) == [
        {"text": [], "answer_start": []}
    ]
    read = Span(path=str(tmp_path / "test.csv"), answer_text="a", answer_start="at", **options).read(False).evaluation
    assert list(read["answers"]) == [{"text": [], "answer_start": []}, {"text": ["Ada"], "answer_start": [0]}]


@pytest.mark.bad_input("C1", "is_impossible=true with an answer, and false without one, in records",
                       before="the column was ignored", after="refused as a contradiction")  # fmt: skip
def test_contradictions_of_is_impossible(tmp_path: Path) -> None:
    message = json_problem(tmp_path, [PLAIN | {"is_impossible": True}], unanswerable=True)
    assert "dev.json, row 1: is_impossible=true, and it has the answer 'Rome': correct one of them" in message
    empty = PLAIN | {"is_impossible": False, "answers": {"text": [], "answer_start": []}}
    message = json_problem(tmp_path, [PLAIN | {"is_impossible": False}, empty | {"id": "b"}], unanswerable=True)
    assert "dev.json, row 2: is_impossible=false, and it has no answer: correct one of them" in message


@pytest.mark.bad_input("C1", "answer_start='thirteen'", before="refused without the row", after="refused with the row")
def test_a_start_that_is_no_number(tmp_path: Path) -> None:
    wrong = [PLAIN, PLAIN | {"answers": {"text": ["Rome"], "answer_start": ["thirteen"]}}]
    wrong[0] = PLAIN | {"answers": {"text": ["Rome"], "answer_start": ["13"]}}
    message = json_problem(tmp_path, wrong)
    assert "dev.json, row 2: column answers: 'thirteen' is not the number of a character, from 0" in message


# --- what is no regular file --------------------------------------------------------------------------------


def fifo(place: Path) -> None:
    os.mkfifo(place)


def socket_at(place: Path) -> None:
    folder = os.open(place.parent, os.O_RDONLY)  # because paths of sockets may have 108 bytes only
    try:
        socket.socket(socket.AF_UNIX).bind(f"/proc/self/fd/{folder}/{place.name}")
    finally:
        os.close(folder)


def endless(place: Path) -> None:
    place.symlink_to("/dev/zero")


IRREGULAR = {"a FIFO": fifo, "a socket": socket_at, "a device": endless}


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.bad_input("B4", f"{kind} named train.csv, or as dataset.path",
                                                   before="waits for ever" if kind != "a socket" else "No such device",
                                                   after="refused by name"))
    for kind in IRREGULAR
])  # fmt: skip
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet", "train.csv.gz"])
def test_data_that_are_no_regular_file(kind: str, name: str, tmp_path: Path) -> None:
    IRREGULAR[kind](tmp_path / name)
    expected = f"{tmp_path / name}: this is {kind}, and only regular files are read; copy its contents into a file"
    assert problem(tmp_path) == problem(tmp_path / name) == expected


@pytest.mark.bad_input("B4", "a FIFO among the files of save_to_disk, in SQuAD's JSON, in CoNLL's columns",
                       before="waits for ever", after="refused by name")  # fmt: skip
def test_all_readers_refuse_them(tmp_path: Path) -> None:
    datasets.Dataset.from_list(rows("x", 4)).save_to_disk(tmp_path / "saved")
    fifo(tmp_path / "saved/more.arrow")
    assert "more.arrow: this is a FIFO" in problem(tmp_path / "saved")
    for name, kind in (("dev.json", Span), ("dev.conll", Tag)):
        fifo(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}: this is a FIFO"):
            kind(path=str(tmp_path / name)).read(train=False)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.bad_input("B4", f"a FIFO as {name} of a model", before="waits for ever",
                                                   after="refused by name"))
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "vocab.txt",
                 "README.md", "generation_config.json")
])  # fmt: skip
def test_model_files_that_are_no_regular_files(name: str, tmp_path: Path, refused: Refused) -> None:
    model = save_small_model(tmp_path / "m")
    (model / name).unlink(missing_ok=True)
    fifo(model / name)
    for key in ("path", "finetuned"):
        settings = ("model=hub", "model.path=embedded:tiny", "dataset=demo", f"model.{key}={model}")
        assert f"{model / name}: this is a FIFO, and only regular files are read" in refused(*settings, "dry_run=true")


def test_links_and_folders_pass(tmp_path: Path) -> None:
    write(tmp_path, train=4)
    (tmp_path / "link.csv").symlink_to(tmp_path / "train.csv")
    (tmp_path / "nowhere.csv").symlink_to(tmp_path / "absent.csv")
    check_regular(tmp_path / "link.csv", tmp_path, tmp_path / "nowhere.csv", tmp_path / "absent.csv")
    assert not stat.S_ISREG((tmp_path / "link.csv").lstat().st_mode)

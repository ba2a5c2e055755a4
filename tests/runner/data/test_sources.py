"""One's own data: CSV, TSV, JSON, JSON-lines and parquet, columns by name, splits, and every problem by its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.data.classification import Classify
from runner.data.examples import Examples
from runner.data.question_answering import Span
from runner.data.splits import Part, held_out
from runner.system.errors import UserError
from tests.conftest import Cli, Refused, save_small_model

TEXTS = ["NA", "null", "007", "", "1e5", "true", 'he said "no", twice', "two lines", "Zoë", " blank "]
LABELS = ["good", "bad"] * 5


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def as_csv(separator: str) -> Callable[[list[dict[str, Any]]], bytes]:
    def made(rows: list[dict[str, Any]]) -> bytes:
        lines = [separator.join(rows[0]), *(separator.join(quoted(str(v)) for v in row.values()) for row in rows)]
        return ("\n".join(lines) + "\n").encode()

    return made


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    import io

    stream = io.BytesIO()
    datasets.Dataset.from_list(rows).to_parquet(stream)
    return stream.getvalue()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "csv": as_csv(","),
    "tsv": as_csv("\t"),
    "json": lambda rows: json.dumps(rows).encode(),
    "jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode(),
    "parquet": as_parquet,
}


def reviews(texts: list[str] = TEXTS, labels: list[Any] = LABELS) -> list[dict[str, Any]]:
    return [{"review": text, "stars": label} for text, label in zip(texts, labels, strict=True)]


def task(path: Path, **options: Any) -> Classify:
    return Classify(path=str(path), **{"text": "review", "label": "stars", **options})


def texts_of(read: Examples) -> list[str]:
    return list(read.evaluation["text"])


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", FORMATS)
def test_text_is_read_as_it_stands_from_every_format(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"dev.{suffix}"
    file.write_bytes(FORMATS[suffix](reviews()))
    read = task(file).read(train=False)
    assert texts_of(read) == TEXTS
    assert [read.evaluation.features["label"].names[i] for i in read.evaluation["label"]] == LABELS
    assert list(read.evaluation["id"]) == [str(i) for i in range(10)]


def test_all_formats_have_the_same_fingerprint(tmp_path: Path) -> None:
    prints = set()
    for suffix, write in FORMATS.items():
        (tmp_path / f"dev.{suffix}").write_bytes(write(reviews()))
        prints.add(task(tmp_path / f"dev.{suffix}").read(train=False).evaluation_fingerprint)
    assert len(prints) == 1


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_bytes(b"\xef\xbb\xbf" + as_csv(",")(reviews()))
    assert texts_of(task(tmp_path / "dev.csv").read(train=False)) == TEXTS
    (tmp_path / "dev.jsonl").write_bytes(b"\xef\xbb\xbf" + FORMATS["jsonl"](reviews()))
    assert texts_of(task(tmp_path / "dev.jsonl").read(train=False)) == TEXTS


@pytest.mark.parametrize(
    ("labels", "names", "coded"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([1, 0, 2], ["0", "1", "2"], [1, 0, 2]),
        ([True, False, True], ["false", "true"], [1, 0, 1]),
        ([1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
        ([5, 1, 3], ["1", "2", "3", "4", "5"], [4, 0, 2]),
        (["10", "9", "10"], None, [1, 0, 1]),
        (["2020-01-02", "2020-01-01", "2020-01-02"], ["2020-01-01", "2020-01-02"], [1, 0, 1]),
        (["10:30", "9:30", "10:30"], ["10:30", "9:30"], [0, 1, 0]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_are_names_or_numbers(
    tmp_path: Path, suffix: str, labels: list[Any], names: list[str] | None, coded: list[int]
) -> None:
    (tmp_path / f"dev.{suffix}").write_bytes(FORMATS[suffix](reviews(["x", "y", "z"], labels)))
    read = task(tmp_path / f"dev.{suffix}").read(train=False)
    names = names or ["9", "10"]
    assert (read.evaluation.features["label"].names, list(read.evaluation["label"])) == (names, coded)


@pytest.mark.parametrize(
    ("labels", "written", "coded"),
    [
        (["bad", "good"], [1, 0, 1], [1, 0, 1]),
        (["bad", "good"], ["1", "0", "good"], [1, 0, 1]),
        (["1", "2"], [1, 2, 1], [0, 1, 0]),  # a number is itself, where it is a name
        (["2", "1"], [1, 2, 1], [1, 0, 1]),
        (["-1", "1"], [-1, 1, 1], [0, 1, 1]),
        (["False", "True"], [True, False, True], [1, 0, 1]),
        (["true", "false"], [True, False, True], [0, 1, 0]),
    ],
)
def test_given_names_are_found_however_they_are_written(
    tmp_path: Path, labels: list[str], written: list[Any], coded: list[int]
) -> None:
    (tmp_path / "dev.csv").write_bytes(as_csv(",")(reviews(["x", "y", "z"], written)))
    (tmp_path / "test.jsonl").write_bytes(FORMATS["jsonl"](reviews(["x", "y", "z"], written)))
    read = task(tmp_path, labels=labels, evaluation_splits=["dev", "test"]).read(train=False)
    assert list(read.evaluation["label"]) == coded * 2


def test_other_names_are_other_data(tmp_path: Path) -> None:
    prints = set()
    for names in (("bad", "good"), ("negative", "positive")):
        (tmp_path / "dev.csv").write_bytes(as_csv(",")(reviews(["x", "y"], list(names))))
        prints.add(task(tmp_path).read(train=False).evaluation_fingerprint)
    assert len(prints) == 2


def test_the_kinds_of_columns_are_read_of_the_whole_file(tmp_path: Path) -> None:
    """However long it is, and however long its texts are."""
    rows = [f'"{"x" * 60} {i}",{i % 2}' for i in range(30_000)]
    (tmp_path / "dev.csv").write_text("\n".join(["review,stars", *rows, f'"{"long " * 300_000}",good', ""]))
    read = task(tmp_path).read(train=False).evaluation
    assert (len(read), read.features["label"].names) == (30_001, ["0", "1", "good"])


def test_numbers_stand_for_the_names_that_are_given(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_bytes(as_csv(",")(reviews(["x", "y"], [1, 0])))
    read = task(tmp_path / "dev.csv", labels=["bad", "good"]).read(train=False)
    assert [row["label"] for row in task(tmp_path).rows(read.evaluation)] == ["good", "bad"]


def test_names_that_the_data_declare_are_put_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    features = datasets.Features({"review": datasets.Value("string"), "stars": datasets.ClassLabel(names=["a", "b"])})
    datasets.Dataset.from_dict({"review": ["x", "y"], "stars": [0, 1]}, features=features).to_parquet(
        tmp_path / "dev.parquet"
    )
    plain, turned = (task(tmp_path / "dev.parquet", **o).read(train=False) for o in ({}, {"labels": ["b", "a"]}))
    assert (plain.evaluation.features["label"].names, list(plain.evaluation["label"])) == (["a", "b"], [0, 1])
    assert (turned.evaluation.features["label"].names, list(turned.evaluation["label"])) == (["b", "a"], [1, 0])
    with pytest.raises(UserError, match=r"dataset.labels=\['a', 'c'\]: the data have other classes: a, b"):
        task(tmp_path / "dev.parquet", labels=["a", "c"]).read(train=False)


def test_answers_may_stand_in_two_plain_columns(tmp_path: Path) -> None:
    rows = [
        {"nr": 7, "passage": "Ada lives in Rome", "q": "where", "a": "Rome", "at": 13},
        {"nr": 8, "passage": "Ada lives in Rome", "q": "who", "a": "Ada", "at": 0},
    ]
    (tmp_path / "dev.csv").write_bytes(as_csv(",")(rows))
    options: dict[str, Any] = dict(id="nr", context="passage", question="q", answer_text="a", answer_start="at")  # noqa: C408
    read = Span(path=str(tmp_path), **options).read(train=False)
    assert read.evaluation.to_list()[0] == {
        "id": "7", "context": "Ada lives in Rome", "question": "where",
        "answers": {"text": ["Rome"], "answer_start": [13]},
    }  # fmt: skip
    with pytest.raises(UserError, match="must be given together"):
        Span(path="x", answer_text="a")


ANSWERED = "id,context,question,a,at\n1,Ada lives in Rome,where,Rome,13\n"
# Rows of CSV, or whole lines of JSON, that are wrong.
UNANSWERED = {
    "2,Ada lives,who,Ada,x": ", line 3: column at: 'x' is not the number of a character, from 0",
    "2,Ada lives,who,Ada,0.5": ", line 3: column at: 0.5 is not the number of a character, from 0",
    "2,Ada lives,who,Ada,": ", line 3: 1 of 2 questions have no answer, or one that does not occur at its answer_start",
    "2,Ada lives,who,Ada,1": ", line 3: 1 of 2 questions have no answer, or one that does not occur at its answer_",
    ",Ada lives,who,Ada,0": ", line 3: column id: the id is missing",
    '{"context": null}': ", line 1: 1 of 1 questions have no answer",
    '{"context": 5}': ", line 1: column context: 1 of 1 values are not text, such as 5",
    '{"question": null}': ", line 1: column question: 1 of 1 values are not text, such as None",
    '{"a": 5}': ", line 1: column a: 1 of 1 values are not text, such as 5",
}


@pytest.mark.parametrize("wrong", UNANSWERED)
def test_answers_that_cannot_be_used_are_named_by_their_place(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / ("dev.jsonl" if wrong.startswith("{") else "dev.csv")
    right = {"id": 1, "context": "Ada lives", "question": "who", "a": "Ada", "at": 0}
    file.write_text(json.dumps({**right, **json.loads(wrong)}) if wrong.startswith("{") else f"{ANSWERED}{wrong}\n")
    with pytest.raises(UserError) as caught:
        Span(path=str(file), answer_text="a", answer_start="at").read(train=False)
    assert f"{file}{UNANSWERED[wrong]}" in str(caught.value)


def test_numbers_of_characters_and_ids_may_be_written_in_other_ways(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text(ANSWERED.replace("13", "13.0"))
    (tmp_path / "test.jsonl").write_text(
        '{"id": 1, "context": "Ada lives", "question": "who", "a": "lives", "at": "4"}\n'
    )
    read = Span(path=str(tmp_path), answer_text="a", answer_start="at", evaluation_splits=["dev", "test"]).read(False)
    assert [answers["answer_start"] for answers in read.evaluation["answers"]] == [[13], [4]]
    assert list(read.evaluation["id"]) == ["dev-1", "test-1"]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"text": "Rome", "answer_start": 0}, "needs lists of text and of whole numbers, not of no list and no list"),
        (
            {"text": ["Rome"], "answer_start": [0.5]},
            "needs lists of text and of whole numbers, not of string and float64",
        ),
        ([{"text": "Rome", "start": 0}], "needs the fields text and answer_start"),
    ],
)
def test_answers_of_another_form_are_refused(tmp_path: Path, answers: Any, said: str) -> None:
    row = {"id": "1", "context": "Rome", "question": "where", "answers": answers}
    (tmp_path / "dev.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=f"dev.jsonl: the column answers {said}"):
        Span(path=str(tmp_path)).read(train=False)


def test_the_question_that_is_wrong_in_squads_format_is_named(tmp_path: Path) -> None:
    good = {"id": "1", "question": "where", "answers": [{"text": "Rome", "answer_start": 0}]}
    whole = {"data": [{"paragraphs": [{"context": "Rome", "qas": [good, {"id": "2", "question": "who"}]}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(whole), encoding="utf-8-sig")
    with pytest.raises(UserError, match=r"dev.json is not in SQuAD's JSON format: question 2: KeyError\('answers'\)"):
        Span(path=str(tmp_path)).read(train=False)
    whole["data"][0]["paragraphs"][0]["qas"].pop()
    (tmp_path / "dev.json").write_text(json.dumps(whole), encoding="utf-8-sig")
    assert list(Span(path=str(tmp_path)).read(train=False).evaluation["id"]) == ["1"]


# --- splits -------------------------------------------------------------------------------------------------


def write(folder: Path, **counts: int) -> Path:
    """CSV files by name, with as many rows."""
    folder.mkdir(exist_ok=True)
    for name, count in counts.items():
        rows = reviews([f"{name} {i}" for i in range(count)], [LABELS[i % 2] for i in range(count)])
        (folder / f"{name}.csv").write_bytes(as_csv(",")(rows))
    return folder


def sizes(read: Examples) -> tuple[int, int]:
    assert read.train is not None
    return len(read.train), len(read.evaluation)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"train": 20, "dev": 4}, (20, 4)),
        ({"train": 20, "validation": 4, "test": 6}, (20, 4)),
        ({"train": 20, "test": 6}, (20, 6)),
        ({"train-1": 20, "train-2": 10, "dev": 4}, (30, 4)),
        ({"train": 20}, (18, 2)),
        ({"TrainSet": 20, "testa": 4, "testb": 6, "latest": 5}, (20, 10)),
        ({"eng.train": 20, "eng.development": 4, "constraints": 5, "device": 5}, (20, 4)),
    ],
)
def test_names_of_files_give_their_splits(tmp_path: Path, counts: dict[str, int], expected: tuple) -> None:
    assert sizes(task(write(tmp_path / "data", **counts)).read()) == expected


def test_splits_by_other_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", learn=20, exam_a=4, exam_b=6)
    read = task(folder, train_split="learn", evaluation_splits=["exam_a", "exam_b"]).read()
    assert sizes(read) == (20, 10)
    assert list(read.evaluation["split"]) == ["exam_a"] * 4 + ["exam_b"] * 6
    assert list(read.evaluation["id"])[3:5] == ["exam_a-3", "exam_b-0"]
    with pytest.raises(UserError, match=r"no file named exam_c\*, which dataset.evaluation_splits asks for"):
        task(folder, train_split="learn", evaluation_splits=["exam_c"]).read()


def test_a_file_belongs_to_the_longest_name_that_fits(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", train=20, dev_matched=4, dev_mismatched=6)
    read = task(folder, evaluation_splits=["matched", "mismatched"]).read()
    assert list(read.evaluation["split"]) == ["matched"] * 4 + ["mismatched"] * 6
    with pytest.raises(UserError, match=r"dev_matched.csv fits (dev and mat|mat and dev)"):
        task(folder, evaluation_splits=["dev", "mat"]).read()
    with pytest.raises(UserError, match=r"no file named learn\*, which dataset.train_split asks for"):
        task(folder, train_split="learn").read()


def test_a_split_may_be_of_files_of_several_formats(tmp_path: Path) -> None:
    for name, write_rows in FORMATS.items():
        (tmp_path / f"train-{name}.{name.upper()}").write_bytes(write_rows(reviews(["x", "y"], [1, 0])))
        (tmp_path / f"dev-{name}.{name}").write_bytes(write_rows(reviews(["x", "y"], [1, 0])))
    large = pa.table({"review": pa.array(["x"], pa.large_string()), "stars": pa.array([1], pa.int8())})
    pq.write_table(large, tmp_path / "train-large.parquet")
    pq.write_table(large, tmp_path / "dev-large.parquet")
    read = task(tmp_path, evaluation_splits=[f"dev-{name}" for name in (*FORMATS, "large")]).read()
    assert sizes(read) == (11, 11)
    assert list(read.evaluation["split"])[-1] == "dev-large"
    assert list(read.evaluation["label"]) == [1, 0] * 5 + [1]


def test_rows_are_counted_in_their_file_after_subset_and_hold_out(tmp_path: Path) -> None:
    rows = [{"review": f"text {i}", "stars": i % 2} for i in range(40)]
    (tmp_path / "train-1.jsonl").write_bytes(FORMATS["jsonl"](rows))
    wrong = [{**row, "review": None} if i == 32 else row for i, row in enumerate(rows)]
    (tmp_path / "train-2.jsonl").write_bytes(FORMATS["jsonl"](wrong))
    for options in ({}, {"holdout": 0.9, "data_seed": 1}, {"holdout": 0.1, "max_train_samples": 60}):
        with pytest.raises(UserError, match=r"train-2.jsonl, line 33: column review: 1 of \d+ values are not text"):
            task(tmp_path, **options).read()


def hub(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    """A dataset on the hub with as many rows in its splits."""

    def made(name: str, count: int) -> datasets.Dataset:
        return datasets.Dataset.from_list(reviews([f"{name} {i}" for i in range(count)], [i % 2 for i in range(count)]))

    loaded = datasets.DatasetDict({name: made(name, count) for name, count in counts.items()})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: loaded)


def test_splits_of_the_hub_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    of_hub = Path("someone/reviews")
    hub(monkeypatch, train=20, validation=4, test=6, extra=8)
    assert sizes(task(of_hub).read()) == (20, 4)
    read = task(of_hub, train_split="extra", evaluation_splits=["test", "validation"]).read()
    assert sizes(read) == (8, 10)
    assert list(read.evaluation["id"])[5:7] == ["test-5", "validation-0"]
    with pytest.raises(UserError, match=r"has no split dev; it has train, validation, test, extra"):
        task(of_hub, evaluation_splits=["dev"]).read()
    hub(monkeypatch, train=20)
    assert sizes(task(of_hub).read()) == (18, 2)
    hub(monkeypatch, everything=20)
    with pytest.raises(
        UserError, match=r"neither a train nor an evaluation split with a usual name; it has everything"
    ):
        task(of_hub).read()
    assert sizes(task(of_hub, train_split="everything").read()) == (18, 2)


def test_what_the_hub_lacks_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, remedy in (
        (RuntimeError("Dataset scripts are no longer supported, but found reviews.py"),
         "but found reviews.py; many have a copy as parquet, with dataset.revision=refs/convert/parquet"),
        (ValueError("Config name is missing.\nPick one among the available configs: ['a', 'b']\nExample of usage:"),
         r"the available configs: \['a', 'b'\]; name it with dataset.name"),
        (ValueError("BuilderConfig 'c' not found. Available: ['a', 'b']"),
         r"Available: \['a', 'b'\]; name another with dataset.name"),
    ):  # fmt: skip

        def failing(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", failing)
        with pytest.raises(UserError, match=remedy):
            task(Path("someone/reviews")).read()


def test_a_single_file_is_split_in_the_same_way_each_time(tmp_path: Path) -> None:
    file = write(tmp_path / "data", reviews=100) / "reviews.csv"
    one, again, other = (task(file, data_seed=seed).read() for seed in (0, 0, 1))
    assert sizes(one) == (90, 10)
    assert texts_of(one) == texts_of(again) != texts_of(other)
    assert one.train is not None
    assert not set(one.train["text"]) & set(texts_of(one))


def test_the_same_text_is_never_on_both_sides(tmp_path: Path) -> None:
    rows = reviews([f"text {i % 10}" for i in range(100)], [LABELS[i % 2] for i in range(100)])
    (tmp_path / "train.csv").write_bytes(as_csv(",")(rows))
    read = task(tmp_path, holdout=0.2).read()
    assert read.train is not None
    assert sizes(read) == (80, 20)
    assert not set(read.train["text"]) & set(texts_of(read))
    (tmp_path / "train.csv").write_bytes(as_csv(",")(reviews(["same"] * 10)))
    with pytest.raises(UserError, match=r"train.csv: it cannot be split"):
        task(tmp_path).read()


def test_a_row_is_known_after_it_was_chosen() -> None:
    part = Part(datasets.Dataset.from_dict({"x": list(range(10))}), [("a.csv", 4), ("b.csv", 6)])
    assert [part.where(i) for i in (0, 3, 4, 9)] == ["a.csv, row 1", "a.csv, row 4", "b.csv, row 1", "b.csv, row 6"]
    chosen = part.select([9, 4, 0]).select([1, 0])
    assert [chosen.where(i) for i in (0, 1)] == ["b.csv, row 1", "b.csv, row 6"]
    few = part.subset(3, seed=0)
    assert [few.where(i) for i in range(3)] == [part.where(x) for x in few.examples["x"]]
    assert part.name == "a.csv, b.csv"


def test_hold_outs_are_whole_groups() -> None:
    rest, held = held_out(["a", "b", "a", "c", "d", "b"], 0.3, seed=0)
    assert sorted(rest + held) == list(range(6))
    assert 2 <= len(held) <= 3
    assert held_out(["same"] * 4, 0.5, seed=0) == ([], [0, 1, 2, 3])


# --- problems -----------------------------------------------------------------------------------------------

GOOD = "review,stars\n" + "".join(f"text {i},{LABELS[i % 2]}\n" for i in range(8))
NAMED: dict[str, Any] = {"labels": ["bad", "good"]}
REGRESSION: dict[str, Any] = {"regression": True, "metric": "pearson"}
# The name of a file, what it holds, what the message says after the file's name, and further options.
PROBLEMS: dict[str, tuple[str, str | bytes, str, dict[str, Any]]] = {
    "another separator": (
        "dev.csv", "review|stars\nx|good\n",
        ': there is no column "review" or "stars"; it has review|stars. Name the columns with dataset.text=COLUMN '
        "dataset.label=COLUMN", {},
    ),
    "no header": ("dev.csv", "x,good\ny,bad\n", ': there is no column "review" or "stars"; it has x, good.', {}),
    "a column twice": ("dev.csv", "review,stars,stars\nx,1,2\n",
                       ': there is no column "stars"; it has review, stars (column 2), stars (column 3)', {}),
    "too few columns": ("dev.csv", GOOD + 'y\n"z\nz",good\nz\n', ", line 10: 1 columns, where the first line has 2: "
                        "'y' (and 1 more rows)", {}),
    "too many columns": ("dev.csv", GOOD + "yes, sir,good\n", ", line 10: 3 columns, where the first line has 2", {}),
    "a quote that never ends": ("dev.csv", GOOD + '"y,good\nz,bad\n', ", line 10: 1 columns", {}),
    "another encoding": ("dev.csv", GOOD.encode() + "Zoë,bad\n".encode("latin-1"), ", line 10: this is not UTF-8", {}),
    "another encoding of JSON": (
        "dev.jsonl", b'{"review": "x", "stars": "a"}\n{"review": "\xe9"}', ", line 2: this is not UTF-8", {},
    ),
    "only a header": ("dev.csv", "review,stars", ": there are no examples", {}),
    "no lines": ("dev.jsonl", "", ": there are no examples", {}),
    "no bytes": ("dev.csv", "", ": the file is empty; its first line must hold", {}),
    "no parquet": ("dev.parquet", "PAR1", " cannot be read as parquet: ", {}),
    "an unknown label": (
        "dev.csv", GOOD + "y,goood\n", ", line 10: column stars: 'goood' is not one of the classes bad, good", NAMED,
    ),
    "an unknown label among numbers": (
        "dev.csv", "review,stars\nx,0\ny,oops\nz,1\n",
        ", line 3: column stars: 'oops' is not one of the classes bad, good", NAMED,
    ),
    "a number above the classes": (
        "dev.csv", "review,stars\nx,0\ny,1\nz,2\n",
        ", line 4: column stars: 2 is not one of the classes bad, good", NAMED,
    ),
    "a number that is none of the classes": (
        "dev.csv", "review,stars\nx,1\ny,3\n", ", line 3: column stars: 3 is not one of the classes 1, 2",
        {"labels": ["1", "2"]},
    ),
    "no label": ("dev.csv", GOOD + "y,\n", ", line 10: column stars: 1 of 9 examples have no label", {}),
    "no label, by number": ("dev.csv", "review,stars\nx,0\ny,-1\nz,1\n", ", line 3: column stars: 1 of 3 examples", {}),
    "a label that is not there": (
        "dev.jsonl", '{"review": "x"}\n{"review": "y", "stars": "b"}\n{"review": "z", "stars": "a"}',
        ", line 1: column stars: 1 of 3 examples have no label", {},
    ),
    "one class": ("dev.csv", "review,stars\nx,a\ny,a\n", ": column stars: the only class is 'a'", {}),
    "one class and -1": (
        "dev.csv", "review,stars\nx,1\ny,-1\n", ": column stars: the only class is '1' (-1 counts as no label)", {},
    ),
    "labels that are lists": ("dev.jsonl", '{"review": "x", "stars": ["a", "b"]}', ": column stars holds lists", {}),
    "labels that are records": ("dev.jsonl", '{"review": "x", "stars": {"a": 1}}', ": column stars holds struct", {}),
    "fractions": ("dev.csv", "review,stars\nx,0.5\ny,1\n", ": column stars: 0.5 is a fraction, not a class", {}),
    "no number": (
        "dev.csv", "review,stars\nx,1.5\ny,two\n", ", line 3: column stars: 'two' is not a number", REGRESSION,
    ),
    "an infinite number": ("dev.csv", "review,stars\nx,1.\ny,inf\n", ", line 3: column stars: inf is not", REGRESSION),
    "no text": (
        "dev.jsonl", '{"review": 5, "stars": "a"}\n{"review": 6, "stars": "b"}',
        ", line 1; FILE, line 2: column review: 2 of 2 values are not text, such as 5", {},
    ),
    "no second text": (
        "dev.jsonl", '{"review": "x", "other": "y", "stars": "a"}\n{"review": "x", "stars": "b"}',
        ", line 2: column other: 1 of 2 values are not text, such as None", {"text_pair": "other"},
    ),
    "text and numbers": (
        "dev.jsonl", '{"review": "x", "stars": 1}\n{"review": "x", "stars": "good"}',
        ", line 2: column stars: 'good' is of another type than the rows above it", {},
    ),
    "no id": (
        "dev.jsonl", '{"review": "x", "stars": 1, "nr": 7}\n{"review": "x", "stars": 0}',
        ", line 2: column nr: the id is missing",
        {"id": "nr"},
    ),
    "a line that is no JSON": (
        "dev.jsonl", '{"review": "x", "stars": "good"}\n{"review": \n',
        " cannot be read as jsonl: line 2: Expecting value", {},
    ),
    "a line that is no record": (
        "dev.jsonl", '{"review": "x", "stars": "good"}\n["x", "good"]\n', ", line 2: not a record", {},
    ),
    "an entry that is no record": ("dev.json", '[{"review": "x", "stars": "good"}, 3]', ", record 2: not a record", {}),
    "a file of another kind": (
        "dev.xlsx", b"PK\x03\x04\xff", ": this type of file cannot be read; those that can are .csv", {},
    ),
    "a split of a single file": ("dev.csv", GOOD, " is one file, and its name has none of these",
                                 {"evaluation_splits": ["test"]}),
    "the same column twice": ("dev.csv", GOOD,
                              "dataset.text=review and dataset.text_pair=review name the same column",
                              {"text_pair": "review"}),
    "no such column": ("dev.csv", GOOD, ': there is no column "rating"; it has review, stars',
                       {"label": "rating"}),
}  # fmt: skip


def problem(name: str, folder: Path) -> tuple[Path, str, dict[str, Any]]:
    """Write the file. Returns its path, the message and the options."""
    file, content, said, options = PROBLEMS[name]
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    expected = said.replace("FILE", str(folder / file))
    return folder / file, expected if said.startswith("dataset.") else f"{folder / file}{expected}", options


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_with_files_are_named_by_their_place(name: str, tmp_path: Path) -> None:
    place, said, options = problem(name, tmp_path)
    with pytest.raises(UserError) as caught:
        task(place, **options).read(train=False)
    assert said in str(caught.value)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with a head for classification."""
    from transformers import AutoModelForSequenceClassification

    folder = save_small_model(tmp_path_factory.mktemp("models") / "classifier")
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    ["another separator", "too few columns", "another encoding", "an unknown label", "no number", "no text",
     "text and numbers", "a line that is no JSON", "a file of another kind"],
)  # fmt: skip
def test_they_end_the_command_line_without_a_traceback(
    name: str, refused: Refused, tmp_path: Path, classifier: Path
) -> None:
    place, said, options = problem(name, tmp_path)
    keys = [f"dataset.{key}={str(value).replace(' ', '')}" for key, value in options.items()]
    message = refused("dataset=classify", f"dataset.path={place}", "dataset.text=review", "dataset.label=stars", *keys,
                      "model=tiny", "prune=false", f"model.finetuned={classifier}")  # fmt: skip
    assert said in message


def test_unlabelled_examples_are_left_out_when_asked(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text(GOOD + "y,\n" * 3)
    assert len(task(tmp_path, drop_unlabelled=True).read(train=False).evaluation) == 8
    (tmp_path / "dev.csv").write_text("review,stars\nx,0\ny,-1\nz,1\n")
    assert list(task(tmp_path, drop_unlabelled=True).read(train=False).evaluation["label"]) == [0, 1]


def test_ids_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    rows = [{"review": f"x{i}", "stars": i % 2, "nr": i // 2} for i in range(4)]
    (tmp_path / "dev.jsonl").write_bytes(FORMATS["jsonl"](rows))
    with pytest.raises(UserError, match=r"2 ids of evaluation examples occur twice \(such as 0\)"):
        task(tmp_path, id="nr").read(train=False)


def test_a_column_of_texts_named_as_the_label_is_doubted_in_a_short_message(tmp_path: Path) -> None:
    for split, rows in (("train", 50), ("dev", 10)):
        lines = (f"a text of {split} {row},{'good' if row % 2 else 'bad'}" for row in range(rows))
        (tmp_path / f"{split}.csv").write_text("\n".join(["review,stars", *lines]) + "\n")
    with pytest.raises(UserError) as refused:
        task(tmp_path, text="stars", label="review").read()
    message = str(refused.value)
    assert "column review: 'a text of dev 0' is not one of the classes a text of train 0, a text of train 1," in message
    assert " and 30 more; correct it, or name all classes in dataset.labels (50 classes look like texts: is" in message


def test_files_with_different_columns_are_no_split(tmp_path: Path) -> None:
    (tmp_path / "train-1.csv").write_text("review,stars\nx,1\n")
    (tmp_path / "train-2.csv").write_text("review,stars\nx,good\n")
    with pytest.raises(UserError, match=r"train-1.csv.*train-2.csv: their columns differ"):
        task(tmp_path).read()


def test_through_the_command_line_it_is_one_line(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text(GOOD + "y,goood\n")
    done = cli("-m", "runner", "model=hub", f"model.path={small_model}", "dataset=classify", "dataset.path=reviews.csv",
               "dataset.text=review", "dataset.label=stars", "dataset.labels=[bad,good]")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        "error: reviews.csv, line 10: column stars: 'goood' is not one of the classes bad, good; correct it, or name "
        "all classes in dataset.labels"
    )
    assert "Traceback" not in done.stderr


def test_lines_of_tsv_that_a_quotation_mark_would_join_are_refused(tmp_path: Path) -> None:
    lines = ["review\tstars", '"a quote that opens\tgood', "more\tbad", "and more\tgood", 'it ends"\tbad']
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"dev.tsv: 4 lines make \d rows: a quotation mark"):
        task(tmp_path).read(train=False)


def test_quoted_text_of_csv_may_have_several_lines(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_bytes(as_csv(",")(reviews(["two\nlines", "x"], ["a", "b"])))
    assert texts_of(task(tmp_path).read(train=False)) == ["two\nlines", "x"]

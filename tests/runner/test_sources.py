"""One's own data: CSV, TSV, JSON, JSON-lines and parquet, columns by name, splits, and every problem by its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from runner.errors import UserError
from runner.tasks import Examples
from runner.tasks.classify import Classify
from runner.tasks.span import Span
from runner.tasks.splits import Part, held_out
from tests.conftest import Cli

TEXTS = ["NA", "null", "007", "", "1e5", "true", 'he said "no", twice', "two\nlines", "Zoë", " blank "]
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
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_labels_are_names_or_numbers(
    tmp_path: Path, suffix: str, labels: list[Any], names: list[str], coded: list[int]
) -> None:
    (tmp_path / f"dev.{suffix}").write_bytes(FORMATS[suffix](reviews(["x", "y", "z"], labels)))
    read = task(tmp_path / f"dev.{suffix}").read(train=False)
    assert (read.evaluation.features["label"].names, list(read.evaluation["label"])) == (names, coded)


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
    with pytest.raises(UserError, match="name columns together"):
        Span(path="x", answer_text="a")


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
    ],
)
def test_files_are_told_apart_by_their_names(tmp_path: Path, counts: dict[str, int], expected: tuple) -> None:
    assert sizes(task(write(tmp_path / "data", **counts)).read()) == expected


def test_splits_by_other_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", learn=20, exam_a=4, exam_b=6)
    read = task(folder, train_split="learn", evaluation_splits=["exam_a", "exam_b"]).read()
    assert sizes(read) == (20, 10)
    assert list(read.evaluation["split"]) == ["exam_a"] * 4 + ["exam_b"] * 6
    assert list(read.evaluation["id"])[3:5] == ["exam_a-3", "exam_b-0"]
    with pytest.raises(UserError, match=r"no file named exam_c\*, which dataset.evaluation_splits asks for"):
        task(folder, train_split="learn", evaluation_splits=["exam_c"]).read()


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
PROBLEMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "another separator": ("review;stars\nx;good\n", r"the columns review, stars are missing; it has review;stars", {}),
    "no such column": (GOOD, "the columns rating are missing.*dataset.label=COLUMN", {"label": "rating"}),
    "the same column twice": (GOOD, "dataset.text=review and dataset.text_pair=review", {"text_pair": "review"}),
    "a ragged row": ("review,stars\nx,good\ny\n", "row 2|Expected 2 columns, got 1", {}),
    "only a header": ("review,stars\n", "there are no examples", {}),
    "nothing": ("", "train.csv", {}),
    "an unknown label": (
        GOOD + "y,goood\n", "train.csv, row 9: column stars: 'goood' is none of the classes bad, good",
        {"labels": ["bad", "good"]},
    ),
    "a number above the classes": (
        "review,stars\n" + "x,0\ny,1\nz,2\n" * 3, "row 3; .*row 6; .*row 9: column stars: 2 is none",
        {"labels": ["bad", "good"]},
    ),
    "no label": (GOOD + "y,\n" * 30, "column stars: .* have no label; .*dataset.drop_unlabelled=true", {}),
    "no number": (
        GOOD, "row [0-9]+.*column stars: '(good|bad)' is no number", {"regression": True, "metric": "pearson"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_with_a_csv_file_are_named_by_their_place(tmp_path: Path, name: str) -> None:
    content, said, options = PROBLEMS[name]
    (tmp_path / "train.csv").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        task(tmp_path, **options).read()
    assert "dataset.text" in str(caught.value) or "train.csv" in str(caught.value)


def test_unlabelled_examples_are_left_out_when_asked(tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text(GOOD + "y,\n" * 3)
    assert len(task(tmp_path, drop_unlabelled=True).read(train=False).evaluation) == 8
    (tmp_path / "dev.csv").write_text("review,stars\nx,0\ny,-1\nz,1\n")
    assert list(task(tmp_path, drop_unlabelled=True).read(train=False).evaluation["label"]) == [0, 1]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"review": "x", "stars": "good"}\n{"review": \n')
    with pytest.raises(UserError, match=r"train.jsonl cannot be read as jsonl: line 2: Expecting value"):
        task(tmp_path).read()
    (tmp_path / "train.jsonl").write_text('{"review": "x", "stars": "good"}\n["x", "good"]\n')
    with pytest.raises(UserError, match=r"train.jsonl, line 2: no record"):
        task(tmp_path).read()


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    rows = [{"review": "x", "stars": "a"}, {"review": None, "stars": "b"}] * 5
    (tmp_path / "dev.jsonl").write_bytes(FORMATS["jsonl"](rows))
    with pytest.raises(UserError, match=r"row 2; .*row 4; .*row 6 and 2 more: column review: 5 of 10 are no text"):
        task(tmp_path).read(train=False)


def test_ids_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    rows = [{"review": f"x{i}", "stars": i % 2, "nr": i // 2} for i in range(4)]
    (tmp_path / "dev.jsonl").write_bytes(FORMATS["jsonl"](rows))
    with pytest.raises(UserError, match=r"2 ids of evaluation examples are there twice \(such as 0\)"):
        task(tmp_path, id="nr").read(train=False)


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
        "error: reviews.csv, row 9: column stars: 'goood' is none of the classes bad, good; correct it, or name all "
        "classes in dataset.labels"
    )
    assert "Traceback" not in done.stderr

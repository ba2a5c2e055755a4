"""Tokenizers that do not fit model or data, and texts that do not fit `max_seq_length`: refused before training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from runner import evaluate, models
from runner.config.compose import compose_experiment
from runner.data.classification import Classify
from runner.data.question_answering import Span
from runner.data.tagging import Tag
from runner.models.checkpoint import Model
from runner.models.vocabulary import check_reading
from runner.stages.prepare import Inputs, resolve
from runner.system.errors import UserError
from tests.conftest import NO_DATA, Refused, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer

DEMO = (
    "dataset=demo",
    "dataset.train_examples=40",
    "dataset.eval_examples=8",
    "train.max_steps=20",
    "finetune.max_steps=8",
)


def without_files(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def without_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def with_empty_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("")


def with_more_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["harcastle", "zoë"])
    tokenizer.save_pretrained(folder)


def with_a_number_beyond(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"]["harcastle"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(values))


def with_text(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "tokenizer.json").write_text(text)

    return change


def without_padding(folder: Path) -> None:
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 466247\n"
UNREADABLE = "its tokenizer cannot be read"


def broken(name: str, change: Callable[[Path], None], words: str, before: str) -> Any:
    mark = pytest.mark.bad_input("A11", name, before=before, after="refused before data are read")
    return pytest.param(change, words, id=name, marks=mark)


BROKEN = [
    broken("a folder without tokenizer files", without_files, "it has no tokenizer", "every word [UNK]"),
    broken("tokenizer_config.json alone", without_vocabulary, "it has no tokenizer", "every word [UNK]"),
    broken("an empty vocab.txt", with_empty_vocabulary, "it has no tokenizer", "a traceback"),
    broken("two tokens more than embeddings", with_more_tokens, "has 606 tokens, and its model embeddings of 604",
           "a crash in the training, after a dry run that saw nothing"),
    broken("a token's number beyond the embeddings", with_a_number_beyond, "has 5001 tokens, and its model embeddings",
           "a crash in the training, after a dry run that saw nothing"),
    broken("a web page as tokenizer.json", with_text("<html>"), UNREADABLE, "the model cannot be loaded"),
    broken("a git-LFS pointer as tokenizer.json", with_text(LFS), UNREADABLE, "the model cannot be loaded"),
    broken("{} as tokenizer.json", with_text("{}"), UNREADABLE, "a traceback: KeyError"),
    broken("no token for padding", without_padding, "no token for padding", "a crash in the training"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BROKEN)
def test_a_tokenizer_that_does_not_fit_its_model(
    change: Callable[[Path], None], words: str, refused: Refused, tmp_path: Path
) -> None:
    folder = save_small_model(tmp_path / "m")
    change(folder)
    text = refused("model=hub", f"model.path={folder}", f"dataset.path={NO_DATA}")
    assert f"error: model.path={folder}: " in text
    assert words in text


@pytest.mark.parametrize("key", ["model.finetuned", "distill.teacher", "model.sparse"])
def test_so_do_those_of_other_checkpoints(key: str, refused: Refused, tmp_path: Path) -> None:
    base, other = save_small_model(tmp_path / "m"), save_small_model(tmp_path / "other")
    without_files(other)
    more = ["pattern=locked"] if key == "model.sparse" else []
    text = refused(
        "model=hub", f"model.path={base}", f"{key}={other}", f"dataset.path={NO_DATA}", *more, "dry_run=true"
    )
    assert f"error: {key}={other}: it has no tokenizer" in text


def test_a_teacher_with_fewer_embeddings_than_tokens(refused: Refused, tmp_path: Path) -> None:
    base, other = save_small_model(tmp_path / "m"), save_small_model(tmp_path / "other")
    for folder in (base, other):
        with_more_tokens(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(base)
    model.resize_token_embeddings(640)
    model.save_pretrained(base)
    text = refused("model=hub", f"model.path={base}", f"distill.teacher={other}", f"dataset.path={NO_DATA}")
    assert f"distill.teacher={other}: its tokenizer has 606 tokens, and its model embeddings of 604" in text


def test_evaluate_refuses_them_too(tmp_path: Path) -> None:
    for change, words in ((without_files, "it has no tokenizer"), (with_more_tokens, "embeddings of 604")):
        folder = save_small_model(tmp_path / change.__name__)
        change(folder)
        with pytest.raises(UserError, match=words):
            evaluate.main([str(folder), *DEMO[:3]])


def test_fewer_tokens_than_embeddings_are_common(tmp_path: Path) -> None:
    """Tables are padded to a multiple of 64, or hold unused tokens."""
    folder = save_small_model(tmp_path / "m")
    values = json.loads((folder / "tokenizer.json").read_text())
    values["model"]["vocab"] = {word: i for word, i in values["model"]["vocab"].items() if i < 600}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert isinstance(prepared(folder, tmp_path, *DEMO), Inputs)


def prepared(folder: Path, tmp_path: Path, *overrides: str) -> Inputs:
    given = ["model=hub", f"model.path={folder}", f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/out"]
    return resolve(*compose_experiment([*given, *overrides]))


# --- unknown words ------------------------------------------------------------------------------------------


def files(folder: Path, train: list[dict[str, Any]], dev: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", train), ("dev", dev)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def rated(text: str) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for label in ("good", "bad")] * 10


def unread(text: str, before: str, after: str, unknown: str) -> Any:
    mark = pytest.mark.bad_input("A11", f"{unknown} as texts of an English model", before=before, after=after)
    return pytest.param(text, id=unknown, marks=mark)


@pytest.mark.parametrize("text", [
    unread("เอดาอาศัยอยู่ในกรุงโรม", "every word [UNK]", "refused", "Thai"),
    unread("आदा रोम में रहती है", "every word [UNK]", "refused", "Hindi"),
    unread("艾达住在罗马", "every word [UNK]", "refused", "Chinese"),
    unread("😀😀 👍", "every word [UNK]", "refused", "emoji"),
])  # fmt: skip
def test_texts_of_unknown_words_alone(text: str, refused: Refused, tmp_path: Path) -> None:
    folder, data = save_small_model(tmp_path / "m"), files(tmp_path / "d", rated(text), rated(text))
    arguments = ["model=hub", f"model.path={folder}", "dataset=classify", f"dataset.path={data}"]
    for more in ([], ["dry_run=true"]):
        message = refused(*arguments, f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/out", *more)
        assert f"model.path={folder}: its tokenizer has no token for 100.0% of the characters in 20" in message
        assert "choose a model of this language and script" in message


@pytest.mark.bad_input("A11", "evaluation texts alone in another script", before="scored, every word [UNK]",
                       after="refused before the training")  # fmt: skip
def test_unknown_words_of_the_evaluation_are_seen_before_the_training(tmp_path: Path) -> None:
    folder, data = save_small_model(tmp_path / "m"), files(tmp_path / "d", rated("Ada is fine"), rated("罗马"))
    with pytest.raises(UserError, match=r"100\.0% of the characters in 20 evaluation texts, such as '罗马'"):
        prepared(folder, tmp_path, "dataset=classify", f"dataset.path={data}")


def checkpoint(folder: Path) -> models.Checkpoint:
    return models.find(str(folder), "model.path", Model(path=str(folder)))


@pytest.mark.bad_input("A11", "a fifth of the characters unknown", before="no word", after="a warning with the share")
def test_many_unknown_characters_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, task = checkpoint(save_small_model(tmp_path / "m")), Classify(path="x")

    def warnings(*texts: str) -> list[str]:
        caplog.clear()
        check_reading(
            found, task, datasets.Dataset.from_list([{"id": "i", "text": text} for text in texts]), "training"
        )
        return [record.getMessage() for record in caplog.records]

    (text,) = warnings("Ada lives in Rome 罗马罗马罗马", "Ada lives in Rome")
    assert text.startswith(
        f"model.path={found.path}: its tokenizer has no token for 17.6% of the characters in 2 training"
    )
    assert "such as '罗马罗马罗马'" in text
    assert warnings(*["Ada lives in Rome and works in Paris"] * 20, "罗") == []  # 1 in 600
    assert warnings("ADA LIVES IN RÓME\u200b\ufeff \n", "cafe\u0301 — no: not the dash") != []  # the dash is unknown
    assert warnings("ADA LIVES IN RÓME\u200b\ufeff \n", "cafe\u0301", "") == []  # case, accents, blanks, invisible ones
    assert warnings("", " \u200b") == []


def test_texts_of_each_kind_of_task_are_read() -> None:
    pair = datasets.Dataset.from_list([{"id": "i", "text": "Ada", "text_pair": "Rome", "label": 0}])
    assert Classify(path="x", text_pair="p").texts(pair) == ["Ada", "Rome"]
    words = datasets.Dataset.from_list([{"id": "i", "tokens": ["Ada", "lives"], "tags": [0, 1]}])
    assert Tag(path="x").texts(words) == ["Ada lives"]
    asked = datasets.Dataset.from_list([question("i", "Ada", "who")])
    assert sorted(Span(path="x").texts(asked)) == ["Ada", "who"]


# --- texts that do not fit ----------------------------------------------------------------------------------


def question(id: str, context: str, text: str) -> dict[str, Any]:
    return {"id": id, "context": context, "question": text, "answers": {"text": ["Ada"], "answer_start": [0]}}


LONG = "Ada lives in Rome " * 20


@pytest.mark.parametrize("words", [
    pytest.param(22, id="22 words", marks=pytest.mark.bad_input(
        "C1", "a question that leaves its paragraph less than the stride", before="a Rust backtrace; no number, no id",
        after="one message with number, ids, remedy")),
    pytest.param(37, id="37 words", marks=pytest.mark.bad_input(
        "C1", "a question as long as max_seq_length", before="a traceback: Truncation error",
        after="the same message")),
    pytest.param(300, id="300 words", marks=pytest.mark.bad_input(
        "C1", "a question far longer than max_seq_length", before="a traceback: Truncation error",
        after="the same message")),
])  # fmt: skip
def test_questions_that_leave_their_paragraph_no_room(words: int, capfd: pytest.CaptureFixture[str]) -> None:
    task = Span(path="x", max_seq_length=40, doc_stride=16)
    rows = [question("short", LONG, "who"), *(question(f"q{i}", LONG, "who " * words) for i in range(7))]
    for labels in (True, False):
        with pytest.raises(UserError) as caught:
            task.features(datasets.Dataset.from_list(rows), build_tokenizer(), None, labels)
        text = str(caught.value)
        assert text.startswith(
            f"7 of 8 questions are so long (ids q0, q1, q2, q3, q4, ...; the longest has {words} tok"
        )
        assert "dataset.max_seq_length=40 leaves their paragraph at most dataset.doc_stride=16 tokens" in text
        assert text.endswith(f"raise dataset.max_seq_length to {words + 3 + 16 + 1} or more")
    wider = Span(path="x", max_seq_length=words + 20, doc_stride=16)
    assert len(wider.features(datasets.Dataset.from_list(rows), build_tokenizer(), None, True)) > 8
    assert "panicked" not in "".join(capfd.readouterr())


def test_a_long_question_whose_paragraph_fits_is_no_problem() -> None:
    task = Span(path="x", max_seq_length=40, doc_stride=16)
    rows = [question("q", "Ada lives in Rome", "who " * 33)]  # 33 + 4 + 3
    assert task.features(datasets.Dataset.from_list(rows), build_tokenizer(), None, True)["length"] == [40]
    rows = [question("q", "Ada lives in Rome", "who " * 34)]
    with pytest.raises(UserError, match="1 of 1 questions"):
        task.features(datasets.Dataset.from_list(rows), build_tokenizer(), None, True)


@pytest.mark.bad_input("C1", "a question too long in the evaluation alone", before="a crash after the training",
                       after="refused before it, in a dry run too")  # fmt: skip
def test_long_questions_of_the_evaluation_are_seen_before_the_training(refused: Refused, tmp_path: Path) -> None:
    train = [question(f"t{i}", "Ada lives in Rome", "who") for i in range(20)]
    data = files(tmp_path / "d", train, [question("good", LONG, "who"), question("long", LONG, "who " * 99)])
    given = ["model=hub", f"model.path={save_small_model(tmp_path / 'm')}", "dataset=span", f"dataset.path={data}",
             "dataset.max_seq_length=64", "dataset.doc_stride=16", f"cache_dir={tmp_path}/cache"]  # fmt: skip
    for more in ([], ["dry_run=true"]):
        text = refused(*given, *more, f"output_dir={tmp_path}/out")
        assert "1 of 2 questions are so long (ids long; the longest has 99 tokens)" in text
    assert not (tmp_path / "out").exists()


def test_long_questions_are_seen_before_tokenizers_are_compared(tmp_path: Path) -> None:
    base, other = save_small_model(tmp_path / "m"), save_small_model(tmp_path / "other")
    values = json.loads((other / "tokenizer.json").read_text())
    values["normalizer"]["lowercase"] = False  # so that a sample of the texts is compared
    (other / "tokenizer.json").write_text(json.dumps(values))
    data = files(tmp_path / "d", [question(f"q{i}", LONG, "who " * 99) for i in range(9)], [question("x", LONG, "who")])
    with pytest.raises(UserError, match=r"9 of 9 questions are so long \(ids q0"):
        prepared(base, tmp_path, f"distill.teacher={other}", "dataset=span", f"dataset.path={data}",
                 "dataset.max_seq_length=64", "dataset.doc_stride=16")  # fmt: skip


@pytest.mark.parametrize(("task", "rows", "least"), [
    pytest.param(Classify(path="x", max_seq_length=2), [{"text": "Ada"}], 3, id="a text", marks=pytest.mark.bad_input(
        "C1", "max_seq_length=2 for texts", before="trained on [CLS] [SEP] alone", after="refused: raise it to 3")),
    pytest.param(Classify(path="x", max_seq_length=1), [{"text": "Ada"}], 3, id="one", marks=pytest.mark.bad_input(
        "C1", "max_seq_length=1 for texts", before="ignored: texts were not cut", after="refused: raise it to 3")),
    pytest.param(Classify(path="x", text_pair="b", max_seq_length=4), [{"text": "Ada", "text_pair": "R"}], 5, id="pair",
                 marks=pytest.mark.bad_input("C1", "max_seq_length=4 for pairs", before="trained on half of the pair",
                                             after="refused: raise it to 5")),
])  # fmt: skip
def test_a_max_seq_length_without_room_for_text(task: Any, rows: list[dict[str, Any]], least: int) -> None:
    examples = datasets.Dataset.from_list([{"id": "i", "label": 0, **row} for row in rows])
    with pytest.raises(UserError) as caught:
        task.features(examples, build_tokenizer(), None, labels=False)
    assert f"dataset.max_seq_length={task.max_seq_length} is too short" in str(caught.value)
    assert str(caught.value).endswith(f"raise it to {least} or more")
    task.max_seq_length = least
    assert task.features(examples, build_tokenizer(), None, labels=False)["length"] == [least]


def test_texts_that_are_cut_or_empty_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    task = Classify(path="x", max_seq_length=8)
    rows = [{"id": f"i{i}", "text": text, "label": 0} for i, text in enumerate(["Ada", LONG, "\u200b", " ", LONG])]
    examples, tokenizer = datasets.Dataset.from_list(rows), build_tokenizer()
    for labels, part in ((True, "training"), (False, "evaluation")):
        caplog.clear()
        task.report(examples, task.features(examples, tokenizer, None, labels), tokenizer)
        assert [record.getMessage() for record in caplog.records] == [
            f"2 of 5 {part} examples have no token of text, such as blank ones (the first has the id i2)",
            f"2 of 5 {part} examples have dataset.max_seq_length=8 tokens or more, and are cut there",
        ]

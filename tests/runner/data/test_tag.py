"""Token classification: words and their tags as tokens and back, scores, files in columns, a run from end to end."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from pruning import IGNORED
from runner.data.conll import read_columns
from runner.data.examples import Examples
from runner.data.tagging import Tag
from runner.data.tagging_scores import scores as tag_scores
from runner.system.errors import UserError
from tests.conftest import Cli, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer

WORDS: tuple[str, ...] = (
    "Ada",
    "lives",
    "in",
    "Rome",
    "and",
    "works",
    "for",
    "Harcastle",
    "extraordinarily",
    "often",
    ".",
    "U.S.",
    "Zoë",
)
TAGS: tuple[str, ...] = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def byte_pairs(trim_offsets: bool) -> PreTrainedTokenizerBase:
    """A tokenizer of byte pairs as RoBERTa's (whose offsets leave the blank out) or ModernBERT's (they count it in)."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    specials = ["<s>", "</s>", "<unk>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer.post_processor = processors.Sequence([  # type: ignore[assignment]
        processors.ByteLevel(trim_offsets=trim_offsets),
        processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


TOKENIZERS = {"words": build_tokenizer(), "trimmed": byte_pairs(True), "blanks": byte_pairs(False)}


def read(folder: Path, sentences: list[list[str]], tags: list[list[str]], **options: Any) -> tuple[Tag, Examples]:
    rows = [{"tokens": of, "ner_tags": to} for of, to in zip(sentences, tags, strict=True)]
    (folder / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Tag(path=str(folder / "dev.jsonl"), labels=list(TAGS), **options)
    return task, task.read(train=False)


def perfect(features: list[dict[str, Any]], tags: list[list[str]]) -> np.ndarray:
    """Logits that choose the gold tag where a word begins, and anything else elsewhere."""
    width = max(row["length"] for row in features)
    logits = np.random.default_rng(0).normal(size=(len(features), width, len(TAGS))).astype(np.float32)
    for row, feature in zip(logits, features, strict=True):
        for at, word in enumerate(feature["word"]):
            if word >= 0:
                row[at, TAGS.index(tags[feature["example"]][word])] = 50
    return logits


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, derandomize=True, max_examples=25)
@given(seed=st.integers(0, 10_000), length=st.sampled_from([12, 24, 128]))
def test_every_word_is_tagged_once_however_long_the_sentence_is(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int, length: int
) -> None:
    chance = random.Random(seed)
    sentences = [chance.choices(WORDS, k=chance.randint(1, 20)) for _ in range(3)]
    tags = [chance.choices(TAGS, k=len(of)) for of in sentences]
    folder = tmp_path_factory.mktemp("data")
    task, examples = read(folder, sentences, tags, max_seq_length=length, doc_stride=4)
    tokenizer = TOKENIZERS[kind]
    made = task.features(examples.evaluation, tokenizer, None, labels=False)
    assert max(made["length"]) <= length
    tagged = [(row["example"], word) for row in made.to_list() for word in row["word"] if word >= 0]
    assert sorted(tagged) == [(i, j) for i, of in enumerate(sentences) for j in range(len(of))]

    labelled = task.features(examples.evaluation, tokenizer, None, labels=True).to_list()
    teaching = [row for row in made.to_list() if max(row["word"]) >= 0]  # others have nothing to learn from
    for row, to_train in zip(teaching, labelled, strict=True):
        assert row["input_ids"] == to_train["input_ids"]
        expected = [TAGS.index(tags[row["example"]][word]) if word >= 0 else IGNORED for word in row["word"]]
        assert to_train["labels"] == expected

    scores = task.score(examples.evaluation, made, [perfect(made.to_list(), tags)])
    assert scores.predictions == {str(i): of for i, of in enumerate(tags)}
    assert set(scores.by_example.values()) == {1.0}
    assert scores.metrics["accuracy"] == 1


ODD: tuple[str, ...] = (
    "Ada",
    "New York",
    "10\u00a0000",
    "",
    " ",
    "\u200d",
    "a\u2028b",
    "東京",
    "[SEP]",
    "</s>",
    "Zoë",
    " x ",
)
"""Words of real data that a tokenizer splits, or of which it leaves nothing."""


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_words_with_blanks_or_without_tokens_shift_no_others(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int
) -> None:
    chance = random.Random(seed)
    sentence = chance.choices(ODD, k=chance.randint(1, 15))
    tags = ["O" if not of.strip() or of == "\u200d" else chance.choice(TAGS) for of in sentence]
    task, examples = read(tmp_path_factory.mktemp("data"), [sentence], [tags], max_seq_length=12, doc_stride=4)
    made = task.features(examples.evaluation, TOKENIZERS[kind], None, labels=False)
    tagged = [word for row in made["word"] for word in row if word >= 0]
    alone = [TOKENIZERS[kind](word, add_special_tokens=False)["input_ids"] for word in sentence]
    assert len(set(tagged)) == len(tagged)
    assert {i for i, tokens in enumerate(alone) if tokens and sentence[i].strip()} <= set(tagged)
    scores = task.score(examples.evaluation, made, [perfect(made.to_list(), [tags])])
    assert scores.predictions == {"0": tags}


def test_a_window_in_which_no_word_begins_is_not_learnt_from(tmp_path: Path) -> None:
    """The loss of such a window would be a mean over nothing."""
    task, examples = read(tmp_path, [["Rome", "Ada" * 30]], [["B-LOC", "B-PER"]], max_seq_length=12, doc_stride=4)
    tokenizer = TOKENIZERS["trimmed"]
    assert len(task.features(examples.evaluation, tokenizer, None, labels=False)) > 2
    (only,) = task.features(examples.evaluation, tokenizer, None, labels=True).to_list()
    assert sorted(set(only["labels"])) == [IGNORED, TAGS.index("B-PER"), TAGS.index("B-LOC")]
    task, examples = read(tmp_path, [["\u200d"]], [["O"]])
    with pytest.raises(UserError, match="the tokenizer leaves nothing of all 1 examples"):
        task.features(examples.evaluation, TOKENIZERS["words"], None, labels=True)


def test_a_word_begins_where_the_tokenizers_own_words_do(tmp_path: Path) -> None:
    sentences = [list(WORDS)]
    task, examples = read(tmp_path, sentences, [["O"] * len(WORDS)])
    (made,) = task.features(examples.evaluation, TOKENIZERS["words"], None, labels=False).to_list()
    encoded = TOKENIZERS["words"](sentences[0], is_split_into_words=True)
    assert made["input_ids"] == encoded["input_ids"]
    of_token = encoded.word_ids()
    first = [of_token.index(word) for word in range(len(WORDS))]
    assert [made["word"].index(word) for word in range(len(WORDS))] == first


def test_scores_are_those_of_the_tags(tmp_path: Path) -> None:
    sentences = [["Ada", "lives", "in", "Rome"], ["Rome", "."]]
    gold = [["B-PER", "O", "O", "B-LOC"], ["B-LOC", "O"]]
    said = [["B-PER", "O", "B-LOC", "I-LOC"], ["B-LOC", "O"]]
    task, examples = read(tmp_path, sentences, gold)
    made = task.features(examples.evaluation, TOKENIZERS["words"], None, labels=False)
    scores = task.score(examples.evaluation, made, [perfect(made.to_list(), said)])
    assert scores.metrics == tag_scores(zip(said, gold, strict=True))
    assert scores.predictions == {"0": said[0], "1": said[1]}
    assert scores.by_example == {"0": 0.0, "1": 1.0}
    assert (scores.statistic, scores.statistics) == ("entity_f1", {"0": [1, 2, 2], "1": [1, 1, 1]})
    (row, _) = task.rows(examples.evaluation)
    assert task.shown(row) == {"Sentence": "Ada lives in Rome", "Entities": "Ada (PER), Rome (LOC)"}
    assert task.kinds(row) == {"Entities": "LOC+PER", "Length": "1 to 5 words"}


def test_a_word_of_which_nothing_is_left_is_outside(tmp_path: Path) -> None:
    sentences = [["Ada", "\u200d", "Rome"]]
    task, examples = read(tmp_path, sentences, [["B-PER", "O", "B-LOC"]])
    made = task.features(examples.evaluation, TOKENIZERS["words"], None, labels=False)
    words = [word for word in made[0]["word"] if word >= 0]
    assert {0, 2} <= set(words)
    scores = task.score(examples.evaluation, made, [perfect(made.to_list(), [["B-PER", "O", "B-LOC"]])])
    assert scores.predictions == {"0": ["B-PER", "O", "B-LOC"]}


COLUMNS = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
. . O O

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def test_files_in_columns_are_sentences(tmp_path: Path) -> None:
    file = tmp_path / "eng.train"
    file.write_text(COLUMNS)
    assert list(read_columns(file, words="tokens", tags="ner_tags")) == [
        {"tokens": ["EU", "rejects", "."], "ner_tags": ["B-ORG", "O", "O"]},
        {"tokens": ["Peter", "Blackburn"], "ner_tags": ["B-PER", "I-PER"]},
    ]
    (tmp_path / "train.conll").write_text(COLUMNS)
    (tmp_path / "dev.txt").write_text(COLUMNS.split("-DOCSTART-")[1].partition("\n")[2])
    found = Tag(path=str(tmp_path)).read()
    assert found.train is not None
    assert (len(found.train), len(found.evaluation)) == (2, 1)
    assert found.train.features["tags"].feature.names == ["B-ORG", "B-PER", "I-PER", "O"]


def test_words_in_columns_may_hold_other_blanks_and_ends_of_lines(tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text("10\u00a0000\tO\r\na\u2028b\x85\tB-LOC\r\n\r\nRome\tB-LOC", newline="")
    assert list(read_columns(tmp_path / "dev.conll", words="tokens", tags="ner_tags")) == [
        {"tokens": ["10\u00a0000", "a\u2028b\x85"], "ner_tags": ["O", "B-LOC"]},
        {"tokens": ["Rome"], "ner_tags": ["B-LOC"]},
    ]


def test_other_tags_than_those_of_entities_have_an_accuracy(tmp_path: Path) -> None:
    """Parts of speech, or numbers of which nobody said what they are, hold no entities: no F1 can be made up."""
    rows = [{"tokens": ["Ada", "lives"], "ner_tags": ["NNP", "VBZ"]}, {"tokens": ["Rome"], "ner_tags": ["NNP"]}]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"metric=f1 counts entities, .* the tag NNP, .* set dataset.metric=accuracy"):
        Tag(path=str(tmp_path)).read(train=False)
    task = Tag(path=str(tmp_path), metric="accuracy")
    examples = task.read(train=False).evaluation
    made = task.features(examples, TOKENIZERS["words"], None, labels=False)
    logits = np.zeros((2, max(made["length"]), 2), np.float32)
    logits[..., 0] = 1  # all are NNP
    scores = task.score(examples, made, [logits])
    assert scores.metrics == {"accuracy": 2 / 3}
    assert scores.by_example == {"0": 0.0, "1": 1.0}
    assert (scores.statistic, scores.statistics) == ("ratio", {"0": [1, 2], "1": [1, 1]})
    (row, _) = task.rows(examples)
    assert task.shown(row) == {"Sentence": "Ada lives", "Tags": "NNP VBZ"}
    assert task.kinds(row) == {"Length": "1 to 5 words"}
    (tmp_path / "dev.jsonl").write_text('{"tokens": ["Ada", "lives"], "ner_tags": [1, 0]}\n')
    with pytest.raises(UserError, match=r"has the tag 0, .*: name the tags in dataset.labels"):
        Tag(path=str(tmp_path)).read(train=False)
    named = Tag(path=str(tmp_path), labels=["O", "B-PER"]).read(train=False).evaluation
    assert task.rows(named)[0]["tags"] == ["B-PER", "O"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "line 2: columns tokens and ner_tags: 2 words have 1 tags"),
        ({"tokens": [], "ner_tags": []}, "line 2: column tokens: the sentence has no words"),
        ({"tokens": [None], "ner_tags": ["O"]}, "line 2: column tokens: None is not text"),
        (
            {"tokens": ["a"], "ner_tags": ["B-DOG"]},
            "line 2: column ner_tags: 'B-DOG' is not one of the classes O, B-PER",
        ),
        ({"tokens": ["a"], "ner_tags": [None]}, "line 2: column ner_tags: a word has no tag"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    rows = [{"tokens": ["Ada"], "ner_tags": ["B-PER"]}, row]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(UserError) as caught:
        Tag(path=str(tmp_path / "dev.jsonl"), labels=list(TAGS)).read(train=False)
    assert f"dev.jsonl, {said}" in str(caught.value)


def test_other_problems_are_named(tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text("Ada B-PER\nlives\n")
    with pytest.raises(UserError, match=r"dev.conll, line 2: 'lives' has no tag"):
        Tag(path=str(tmp_path)).read(train=False)
    (tmp_path / "dev.conll").write_text("Ada NNP B-PER\nlives VBZ\n")
    with pytest.raises(UserError, match=r"dev.conll, line 2: 'lives VBZ' has 2 columns, and the lines above it 3"):
        Tag(path=str(tmp_path)).read(train=False)
    (tmp_path / "dev.conll").write_bytes("Ada B-PER\nZoë B-PER\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"dev.conll, line 2: this is not UTF-8"):
        Tag(path=str(tmp_path)).read(train=False)
    (tmp_path / "dev.conll").unlink()
    (tmp_path / "dev.jsonl").write_text('{"tokens": "Ada lives", "ner_tags": ["O", "O"]}\n')
    with pytest.raises(UserError, match=r"dev.jsonl: column tokens needs lists"):
        Tag(path=str(tmp_path)).read(train=False)
    (tmp_path / "dev.jsonl").write_text('{"tokens": [["a"]], "ner_tags": ["O"]}\n')
    with pytest.raises(UserError, match=r"dev.jsonl: column tokens holds list<.*>, where text or numbers are needed"):
        Tag(path=str(tmp_path)).read(train=False)
    with pytest.raises(UserError, match=r"doc_stride=128 does not fit dataset.max_seq_length=128"):
        Tag(path="x", doc_stride=128)
    with pytest.raises(UserError, match=r"dataset.metric=macro_f1 must be one of f1, precision"):
        Tag(path="x", metric="macro_f1")


def test_a_run_on_a_file_in_columns(cli: Cli, rows: Any, tmp_path: Path) -> None:
    chance = random.Random(0)
    names = ("Ada", "Bob", "Cora", "Dora")

    def text(count: int) -> str:
        def line() -> str:
            return "\n".join(f"{w} B-PER" if w in names else f"{w} O" for w in (chance.choice(names), "lives", "here"))

        return "\n\n".join(line() for _ in range(count)) + "\n"

    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.conll").write_text(text(48))
    (tmp_path / "data/dev.conll").write_text(text(12))
    model = save_small_model(tmp_path / "small")
    done = cli(
        "-m", "runner", "dataset=tag", "dataset.path=data", "model=hub", f"model.path={model}", "pattern=2:4",
        "recipe=published",
        "schedule=short", "train.num_train_epochs=3", "train.learning_rate=1e-3", "finetune.learning_rate=3e-3",
        "finetune.num_train_epochs=12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = rows()
    assert (row["dataset"], row["metric"], row["pattern"]) == ("data", "f1", "2:4")
    (folder,) = (tmp_path / "outputs").glob("*-data-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["dense"].keys() == {"f1", "precision", "recall", "accuracy"}
    assert result["dense"]["f1"] == 1  # a name is a name: a few steps learn it
    assert "teacher" in result["stages"]
    config = json.loads((folder / "model/config.json").read_text())
    assert (config["architectures"], config["id2label"]) == (["BertForTokenClassification"], {"0": "B-PER", "1": "O"})
    shown = cli("-m", "runner.examples", str(folder), "--no-log")
    assert shown.returncode == 0, shown.stderr
    assert "By entities" in shown.stdout

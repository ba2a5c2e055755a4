"""Answers and words in any script: labels at their own tokens, those without tokens counted, F1 by characters."""

# ruff: noqa: RUF001 - the punctuation of Chinese

import json
import os
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from results import columns
from runner.config.compose import compose_experiment
from runner.data.question_answering import Span
from runner.data.scores import Scores
from runner.data.squad_scores import best_of, normalize_characters
from runner.data.tagging import Tag
from runner.stages.prepare import resolve
from tests.conftest import save_small_model
from tests.tools.pretrain_tiny import build_tokenizer

# --- tokenizers of all kinds --------------------------------------------------------------------------------

TEXTS = (
    "Ada lives in Rome and Zoë's café is near it, they say.",
    "تعيش آدا في روما والمقهى قريب منه كما يقولون",
    "आदा रोम में रहती है और क्षेत्र के पास का कैफ़े",
    "艾达住在罗马，咖啡馆就在附近。アダはローマに住んでいます。",
    "เอดาอาศัยอยู่ในกรุงโรม ร้านกาแฟอยู่ใกล้",
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def _fast(tokenizer: Tokenizer, trainer: Any, *post: Any) -> PreTrainedTokenizerBase:
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    pair = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.post_processor = processors.Sequence([*post, pair])  # type: ignore[assignment]
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(names))


def word_pieces(lowercase: bool) -> PreTrainedTokenizerBase:
    """As BERT's: control characters dropped, each Chinese character a word, accents stripped if lower-cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    return _fast(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))


def byte_pairs(trim_offsets: bool) -> PreTrainedTokenizerBase:
    """As RoBERTa's (whose offsets leave the blank out) or ModernBERT's: rare characters take several tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return _fast(tokenizer, trainer, processors.ByteLevel(trim_offsets=trim_offsets))


def unigrams() -> PreTrainedTokenizerBase:
    """As XLM-R's: NFKC, and a blank that begins each word's first token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\u200b", " ")])  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return _fast(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False),
    )


def known_characters() -> PreTrainedTokenizerBase:
    """Byte pairs without bytes: an unknown character has no token at all."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return _fast(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))


def of_minilm() -> PreTrainedTokenizerBase:
    hub = os.environ.get("PRUNE_DISTILL_HUB")
    if not hub:
        pytest.skip("PRUNE_DISTILL_HUB is not set: no folder with MiniLM")
    return AutoTokenizer.from_pretrained(Path(hub) / "models/sentence-transformers/all-MiniLM-L6-v2")


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerBase:
    return {
        "demo": build_tokenizer,
        "lower-cased word pieces": lambda: word_pieces(lowercase=True),
        "word pieces": lambda: word_pieces(lowercase=False),
        "byte pairs": lambda: byte_pairs(trim_offsets=True),
        "byte pairs with blanks": lambda: byte_pairs(trim_offsets=False),
        "unigrams": unigrams,
        "known characters": known_characters,
        "MiniLM": of_minilm,
    }[kind]()


KINDS = ("demo", "lower-cased word pieces", "word pieces", "byte pairs", "byte pairs with blanks", "unigrams",
         "known characters", "MiniLM")  # fmt: skip

# --- labels -------------------------------------------------------------------------------------------------

UNSEEN = (" ", "\n", "\t", "\r\n", "\u200b", "\ufeff", "\u200d", "\u00ad", "\u3000", "\u2028", "\u00a0")
SCRIPTS = (
    "Rome", "Zoë", "cafe\u0301", "U.S.", "2½", "روما", "المَقْهى", "क्षेत्र", "कैफ़े", "罗马", "ローマ", "か\u3099",
    "กรุงโรม", "ที่", "😀", "👩\u200d🚀", "🇮🇹", "Żelazowa", "\ufffd", "†",
)  # fmt: skip
BETWEEN = (*UNSEEN[:4], " \u200b", ", ", "")


def is_unseen(text: str) -> bool:
    return all(unicodedata.category(c) in ("Zs", "Zl", "Zp", "Cc", "Cf") for c in text)


@st.composite
def paragraphs(draw: st.DrawFn) -> tuple[str, str, int, str, int]:
    """A paragraph; an answer in it of whole words with what is at its ends, and its start; the words alone."""
    pieces = draw(st.lists(st.sampled_from(SCRIPTS), min_size=1, max_size=8))
    first = draw(st.integers(0, len(pieces) - 1))
    last = draw(st.integers(first, min(first + 2, len(pieces) - 1)))
    between = [draw(st.sampled_from(BETWEEN)) for _ in pieces]
    before, after = (draw(st.lists(st.sampled_from(UNSEEN), max_size=2).map("".join)) for _ in range(2))
    head = "".join(piece + gap for piece, gap in zip(pieces[:first], between[:first], strict=True))
    words = "".join(piece + gap for piece, gap in zip(pieces[first:last], between[first:last], strict=True))
    words += pieces[last]
    tail = between[last] + "".join(p + g for p, g in zip(pieces[last + 1 :], between[last + 1 :], strict=True))
    answer = before + words + after
    return head + answer + tail, answer, len(head), words, len(head) + len(before)


def expected_characters(kind: str, paragraph: str, words: str, start: int) -> set[int]:
    """The characters of the words, without those at the ends that no token covers."""
    encoded = tokenizer(kind)(paragraph, add_special_tokens=False, return_offsets_mapping=True)
    covered = {c for begin, stop in encoded["offset_mapping"] for c in range(begin, stop)}
    return {c for c in range(start, start + len(words)) if c in covered}


@pytest.mark.bad_input(
    "A3", "answers in Latin, Arabic, Hindi, Chinese, Thai, emoji, with blanks or invisible characters at their ends",
    before="the label was the next word, [CLS], or the last byte of a character",
    after="the tokens that cover the answer's visible characters",
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=150)
@given(paragraphs())
@example(("Ada lives in \u200bRome\u200b now", "\u200bRome\u200b", 13, "Rome", 14))
@example(("in Rome\n next", "Rome\n", 3, "Rome", 3))
@example(("\ufeffRome is old", "\ufeffRome", 0, "Rome", 1))
@example(("e\u0301 Rome", "\u0301 Rome", 1, "Rome", 3))
@example(("\ufffdRome is old", "\ufffdRome", 0, "\ufffdRome", 0))
def test_labels_cover_the_answer_and_no_other_word(kind: str, drawn: tuple[str, str, int, str, int]) -> None:
    paragraph, answer, begin, words, start = drawn
    assert paragraph[begin : begin + len(answer)] == answer
    assert paragraph[start : start + len(words)] == words
    row = {"id": "q", "context": paragraph, "question": "who", "answers": {"text": [answer], "answer_start": [begin]}}
    batch = {name: [value] for name, value in row.items()}
    task = Span(path="x", max_seq_length=384)
    made = task.tokenized(batch, [0], tokenizer(kind), labels=True)
    shown = task.tokenized(batch, [0], tokenizer(kind), labels=False)
    expected = expected_characters(kind, paragraph, words, start)
    if not expected:
        assert made["example"] == []  # left out
        return
    (first,), (last,) = made["start_positions"], made["end_positions"]
    assert 0 < first <= last
    starts, ends = shown["start_character"][0], shown["end_character"][0]
    assert starts[first] <= min(expected) < ends[first]
    assert starts[last] <= max(expected) < ends[last]
    if first > 1 and starts[first - 1] >= 0:  # no token before or after would also cover a part of it
        assert ends[first - 1] <= min(expected)
    if last + 1 < len(starts) and starts[last + 1] >= 0:
        assert starts[last + 1] > max(expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(paragraphs(), min_size=1, max_size=3), st.integers(12, 24))
def test_each_window_that_holds_the_answer_is_labelled(kind: str, drawn: list[Any], length: int) -> None:
    """The answer of the second of several paragraphs, in windows shorter than they are."""
    before = " ".join(paragraph for paragraph, *_ in drawn)
    paragraph, answer, begin, *_ = drawn[-1]
    whole = f"{before} {paragraph} {before}"
    begin += len(before) + 1
    batch = {"context": [whole], "question": ["?"], "answers": [{"text": [answer], "answer_start": [begin]}]}
    wide = Span(path="x", max_seq_length=10_000)
    narrow = Span(path="x", max_seq_length=length, doc_stride=length - 9)
    (shown,) = wide.tokenized(batch, [0], tokenizer(kind), labels=False)["start_character"]
    ends = wide.tokenized(batch, [0], tokenizer(kind), labels=False)["end_character"][0]
    made = wide.tokenized(batch, [0], tokenizer(kind), labels=True)
    if not made["example"]:
        return
    first, last = made["start_positions"][0], made["end_positions"][0]
    expected = shown[first], ends[last]
    labelled = narrow.tokenized(batch, [0], tokenizer(kind), labels=True)
    windows = narrow.tokenized(batch, [0], tokenizer(kind), labels=False)
    if not labelled["example"]:
        assert last - first + 1 > length - 9  # longer than what neighbours share, so that no window may hold it
        return
    for i, (starts, stops) in enumerate(zip(windows["start_character"], windows["end_character"], strict=True)):
        span = labelled["start_positions"][i], labelled["end_positions"][i]
        inside = [at for at, start in enumerate(starts) if start >= 0]
        if starts[inside[0]] <= expected[0] and expected[1] <= stops[inside[-1]]:
            assert starts[span[0]] <= expected[0]  # some count a blank to the first token of a window
            assert not whole[starts[span[0]] : expected[0]].strip()
            assert stops[span[1]] == expected[1]
        else:
            assert span == (0, 0)


def table(*rows: tuple[str, str, str]) -> datasets.Dataset:
    """Questions from (id, paragraph, answer)."""
    return datasets.Dataset.from_list([
        {"id": id, "context": context, "question": "who",
         "answers": {"text": [answer], "answer_start": [context.index(answer)]}}
        for id, context, answer in rows
    ])  # fmt: skip


@pytest.mark.bad_input("A3", "an answer of U+200B alone, or longer than a window",
                       before="labelled as no answer at [CLS]",
                       after="left out, with their number and the first id in the log")  # fmt: skip
@pytest.mark.parametrize("unanswerable", [False, True])
def test_answers_that_cannot_be_placed_are_left_out_and_counted(
    unanswerable: bool, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    task = Span(path="x", max_seq_length=24, doc_stride=8, unanswerable=unanswerable)
    long = " ".join(["Ada lives in Rome"] * 10)
    examples = table(
        ("good", "Ada lives in Rome", "Rome"), ("empty", "Ada \u200b lives", "\u200b"), ("long", long, long)
    )
    for _ in range(2):  # made, and from the cache
        features = task.features(examples, tokenizer("demo"), tmp_path, labels=True)
        assert features["example"] == [0]
        caplog.clear()
        task.report(examples, features, tokenizer("demo"))
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert record.getMessage().startswith("2 of 3 training questions are left out, because no token covers")
        assert "dataset.max_seq_length=24" in record.getMessage()
        assert record.getMessage().endswith("(such as id empty)")
    caplog.clear()
    evaluation = task.features(examples, tokenizer("demo"), None, labels=False)
    task.report(examples, evaluation, tokenizer("demo"))
    assert sorted(set(evaluation["example"])) == [0, 1, 2]  # all are scored
    assert caplog.records == []


# --- words --------------------------------------------------------------------------------------------------


def sentences(*rows: list[str]) -> datasets.Dataset:
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-X"]))
    features = datasets.Features(
        {"id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string")), "tags": tags}
    )
    made = [
        {"id": f"s{i}", "tokens": words, "tags": [i % 2 for i in range(len(words))]} for i, words in enumerate(rows)
    ]
    return datasets.Dataset.from_list(made, features=features)


@pytest.mark.bad_input("A3", "words of U+200B, combining marks, emoji among the words of a sentence",
                       before="with some tokenizers the tag was at the blank after the word",
                       after="each tag is at a token of its own word")  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from((*SCRIPTS, *UNSEEN, "\u0301", "", "New York")), min_size=1, max_size=8))
def test_tags_are_at_tokens_of_their_words(kind: str, words: list[str]) -> None:
    task, examples = Tag(path="x"), sentences(words)
    (at_tokens,) = task.tokenized(examples[:], [0], tokenizer(kind), labels=False)["word"]
    encoded = tokenizer(kind)(" ".join(words), return_offsets_mapping=True)
    ends = [len(" ".join(words[: i + 1])) for i in range(len(words))]
    covered = {c for begin, stop in encoded["offset_mapping"] for c in range(begin, stop)}
    for word, end in enumerate(ends):
        own = set(range(end - len(words[word]), end))
        at = [i for i, of in enumerate(at_tokens) if of == word]
        assert len(at) <= 1
        for i in at:
            assert own & set(range(*encoded["offset_mapping"][i]))
        if not at:  # all of it is in tokens that end in another word, or in none
            ending_here = [o for o in encoded["offset_mapping"] if o[1] > o[0] and o[1] - 1 in own]
            assert ending_here == []
            assert kind in ("unigrams", "byte pairs with blanks") or not own & covered


@pytest.mark.bad_input("A3", "words that produce no token", before="not mentioned; scored as O",
                       after="counted in the log, with the first sentence's id")  # fmt: skip
def test_words_without_tokens_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    task, examples = Tag(path="x"), sentences(["Ada", "lives"], ["Ada", "\u200b", "\ufeff"], ["\u200b", "Rome"])
    for labels, part in ((True, "training"), (False, "evaluation")):
        caplog.clear()
        task.report(examples, task.features(examples, tokenizer("demo"), None, labels), tokenizer("demo"))
        (record,) = caplog.records
        assert record.getMessage().startswith(f"3 words of the {part} sentences have no token")
        assert "(the first is in the sentence with id s1)" in record.getMessage()
    caplog.clear()
    whole = examples.select([0])
    task.report(whole, task.features(whole, tokenizer("demo"), None, True), tokenizer("demo"))
    assert caplog.records == []


# --- F1 by characters ---------------------------------------------------------------------------------------


def mlqa_units(text: str) -> list[str]:
    """The units of MLQA's official script for Chinese, written anew: no punctuation of any script, each Chinese
    character a unit, the rest by blanks."""
    units, word = [], ""
    for character in text.lower() + " ":
        if unicodedata.category(character)[0] == "P" or character in "$+<=>^`|~":
            continue  # as if it had not been there
        chinese = 0x4E00 <= ord(character) <= 0x9FA5
        if chinese or character.isspace():
            units += [word] if word else []
            units += [character] if chinese else []
            word = ""
        else:
            word += character
    return units


def mlqa_scores(prediction: str, answer: str) -> tuple[float, float]:
    predicted, expected = mlqa_units(prediction), mlqa_units(answer)
    left, common = list(expected), 0
    for unit in predicted:
        if unit in left:
            left.remove(unit)
            common += 1
    f1 = 2 * common / (len(predicted) + len(expected)) if common else 0.0
    return float(predicted == expected), f1


pieces = st.sampled_from(
    [
        "罗马",
        "咖啡馆",
        "罗",
        "馆",
        "。",
        "，",
        "《",
        "》",
        " ",
        "\u3000",
        "NASA",
        "the",
        "A",
        "1990",
        "年",
        "-",
        "Zoë",
        ".",
    ]
)
chinese = st.lists(pieces, max_size=7).map("".join)


@settings(deadline=None, derandomize=True, max_examples=400)
@given(chinese, chinese)
@example("罗马。", "罗马")
@example("1990年 NASA", "1990 年NASA")
@example("the 罗马", "罗马")
def test_characters_are_scored_as_mlqas_script_does_in_chinese(prediction: str, answer: str) -> None:
    exact, f1 = best_of(prediction, [answer], normalize_characters)
    expected = mlqa_scores(prediction, answer)
    assert (exact, f1) == (expected[0], pytest.approx(expected[1] if mlqa_units(answer) else 0.0, abs=1e-12))


@pytest.mark.parametrize(("prediction", "answer", "exact", "f1"), [
    ("ローマ", "ローマ市", 0, 6 / 7),
    ("กรุงโรม", "กรุงโรม", 1, 1),
    ("โรม", "กรุงโรม", 0, 2 * 3 / 10),
    ("ມະຫາວິທະຍາໄລ", "ມະຫາວິທະຍາໄລ", 1, 1),
    ("the cat", "cat", 0, 2 / 3),  # articles count, as in MLQA's Chinese
    ("Рим", "город Рим", 0, 2 / 3),  # words of other scripts are whole
    ("«Рим»", "Рим", 1, 1),
    ("𠮷野家", "𠮷野", 0, 4 / 5),  # beyond the range of MLQA's script
])  # fmt: skip
def test_other_scripts_by_characters(prediction: str, answer: str, exact: float, f1: float) -> None:
    assert best_of(prediction, [answer], normalize_characters) == (exact, pytest.approx(f1))


def scored(task: Span, examples: datasets.Dataset, shorter_by: int = 0) -> Scores:
    """The scores of answers that are gold but for their last characters."""
    features = task.features(examples, tokenizer("byte pairs"), None, labels=False)
    logits = [np.zeros((len(features), max(features["length"])), np.float32) for _ in range(2)]
    answers = examples["answers"]
    for row, feature in enumerate(features.to_list()):
        gold = answers[feature["example"]]
        begin, stop = gold["answer_start"][0], gold["answer_start"][0] + len(gold["text"][0]) - shorter_by
        logits[0][row, feature["start_character"].index(begin)] = 9
        last = max(i for i, end in enumerate(feature["end_character"]) if end == stop)
        logits[1][row, last] = 9
    return task.score(examples, features, logits)


CHINESE = table(("a", "艾达住在罗马城里，咖啡馆就在附近。", "罗马城里"), ("b", "咖啡馆就在附近。", "咖啡馆就在"))
ENGLISH = table(("a", "Ada lives in Rome", "Ada lives"), ("b", "Zoë works in Paris", "Paris"))


@pytest.mark.bad_input("A4", "Chinese answers without their last character", before="F1 3.72 of 100 without a word",
                       after="F1 0 by words with a warning; 0.87 by dataset.metric=character_f1")  # fmt: skip
def test_a_missing_character_is_no_missing_answer() -> None:
    words = scored(Span(path="x"), CHINESE, shorter_by=1)
    assert words.metrics == {"exact_match": 0, "f1": 0}
    task = Span(path="x", metric="character_f1")
    characters = scored(task, CHINESE, shorter_by=1)
    assert characters.metrics == {
        **words.metrics, "character_exact_match": 0, "character_f1": pytest.approx((6 / 7 + 8 / 9) / 2),
    }  # fmt: skip
    assert characters.by_example == {"a": pytest.approx(6 / 7), "b": pytest.approx(8 / 9)}
    assert scored(task, CHINESE).metrics["character_exact_match"] == 1
    exact = scored(Span(path="x", metric="character_exact_match"), CHINESE)
    assert exact.by_example == {"a": 1, "b": 1}
    assert scored(task, ENGLISH).by_example == {"a": 1, "b": 1}


def test_questions_without_an_answer_are_scored_by_characters_too() -> None:
    task = Span(path="x", metric="character_f1", unanswerable=True, null_threshold=100.0)
    scores = scored(task, CHINESE, shorter_by=1)
    assert scores.metrics["has_answer_character_f1"] == scores.metrics["character_f1"] > 0.8
    assert scores.choosing.keys() == {"best_character_f1", "best_character_f1_threshold"}
    assert scores.choosing["best_character_f1"] == scores.metrics["character_f1"]


@pytest.mark.parametrize(("answers", "number"), [
    pytest.param(["罗马", "Ada"], "1 of 2", id="Chinese", marks=pytest.mark.bad_input(
        "A4", "half of the answers in Chinese, metric f1", before="no word", after="one warning with the option")),
    pytest.param(["กรุงโรม"], "1 of 1", id="Thai", marks=pytest.mark.bad_input(
        "A4", "answers in Thai, metric f1", before="no word", after="one warning with the option")),
    pytest.param(["ローマに1990年"], "1 of 1", id="Japanese", marks=pytest.mark.bad_input(
        "A4", "answers in Japanese, metric f1", before="no word", after="one warning with the option")),
    pytest.param(["Ada", "روما", "रोम", "로마 시", "1990"], None, id="with blanks"),
    pytest.param([*["Ada"] * 12, "罗马"], None, id="one in thirteen"),
])  # fmt: skip
def test_answers_in_a_script_without_blanks_call_for_characters(
    answers: list[str], number: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"id": f"q{i}", "context": f"{text} !", "question": "who", "answers": {"text": [text], "answer_start": [0]}}
            for i, text in enumerate(answers)]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    Span(path=str(tmp_path)).read()
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if number is None:
        assert warnings == []
        return
    (text,) = warnings
    assert text.startswith(f"{number} answers are in a script without blanks between words, such as ")
    assert "dataset.metric=f1 takes" in text
    assert text.endswith("dataset.metric=character_f1")
    caplog.clear()
    Span(path=str(tmp_path), metric="character_f1").read()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_what_was_measured_is_in_identity_result_and_slices(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    given = ["model=hub", f"model.path={folder}", "dataset=demo", "dataset.train_examples=40",
             "dataset.eval_examples=4", f"cache_dir={tmp_path}/cache", "train.max_steps=20"]  # fmt: skip
    words, characters = (resolve(*compose_experiment([*given, *more])).identity
                         for more in ([], ["dataset.metric=character_f1"]))  # fmt: skip
    assert words.run != characters.run
    assert words.group != characters.group  # not pooled
    assert words.control != characters.control  # not compared
    assert words.dense == characters.dense  # trained once
    assert columns.written("character_f1") == "character F1"
    assert columns.written("has_answer_character_f1") == "has answer character F1"
    slices = Span(path="x", metric="character_f1").kinds(CHINESE[0])
    assert slices["Length of the answer"] == "3 to 4 characters"
    assert slices["Length of the paragraph"] == "1 to 100 characters"
    assert Span(path="x").kinds(CHINESE[0])["Length of the answer"] == "1 word"

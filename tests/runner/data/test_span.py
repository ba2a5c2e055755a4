"""Extractive question answering: sources, subsets, windows with their labels, and the best span of the logits."""

import itertools
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from runner.data import spans
from runner.data.answers import fingerprint
from runner.data.demo import Demo
from runner.data.examples import Examples
from runner.data.question_answering import Span
from runner.data.spans import best_spans, highest, padded
from runner.data.splits import held_out
from runner.data.squad_metric import SquadMetric
from runner.data.windows import answer_tokens
from runner.demo.text import examples as generated
from runner.system.errors import UserError
from tests.tools.pretrain_tiny import build_tokenizer

TOKENIZER = build_tokenizer()


def row(id: str, context: str, answer: str, question: str = "who", start: int | None = None) -> dict[str, Any]:
    begin = context.index(answer) if start is None else start
    return {"id": id, "context": context, "question": question,
            "answers": {"text": [answer], "answer_start": [begin]}}  # fmt: skip


def rows(count: int, paragraphs: int = 10) -> list[dict[str, Any]]:
    """Questions sorted by paragraph, as in SQuAD."""
    per = -(-count // paragraphs)
    return [row(f"q{i}", f"paragraph {i // per} says that Ada lives in Rome", "Ada") for i in range(count)]


def table(content: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(content)


def split_by_context(
    examples: datasets.Dataset, fraction: float, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    rest, held = held_out(list(examples["context"]), fraction, seed)
    return examples.select(rest), examples.select(held)


def prints(read: Examples) -> tuple[str, str]:
    """The hashes of the contents of both splits."""
    return read.train_fingerprint, read.evaluation_fingerprint


def squad_json(content: list[dict[str, Any]]) -> str:
    paragraphs: dict[str, list] = {}
    for one in content:
        answers = [{"text": t, "answer_start": s} for t, s in zip(*one["answers"].values(), strict=True)]
        paragraphs.setdefault(one["context"], []).append(
            {"id": one["id"], "question": one["question"], "answers": answers}
        )
    article = {"title": "t", "paragraphs": [{"context": c, "qas": qas} for c, qas in paragraphs.items()]}
    return json.dumps({"version": "1.1", "data": [article]})


def json_lines(content: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in content)


# --- the best span ------------------------------------------------------------------------------------------


def naive_best(
    start: Sequence[Any], end: Sequence[Any], allowed: Sequence[bool], n_best: int, max_length: int
) -> tuple[float, int, int] | None:
    """The highest sum of a valid pair among the n_best of each side, and its tokens, by trying all; the first of
    equals, as in the usual post-processing of run_qa."""
    best = None
    firsts, lasts = (sorted(range(len(side)), key=lambda i: -side[i])[:n_best] for side in (start, end))
    for first in firsts:
        if first >= len(allowed) or not allowed[first]:
            continue
        for last in lasts:
            if last >= len(allowed) or not allowed[last] or not first <= last < first + max_length:
                continue
            total = start[first] + end[last]
            if best is None or total > best[0]:
                best = total, first, last
    return best


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    count, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    narrower = draw(st.integers(1, tokens))  # features are padded to their own longest, logits to the batch's
    logits = st.lists(st.lists(st.integers(-9, 9), min_size=tokens, max_size=tokens), min_size=count, max_size=count)
    inside = st.lists(st.lists(st.booleans(), min_size=narrower, max_size=narrower), min_size=count, max_size=count)
    return np.array(draw(logits), float), np.array(draw(logits), float), np.array(draw(inside), bool)


@given(windows(), st.integers(1, 14), st.integers(1, 6), st.sampled_from([1, 30, 2**20]))
@settings(deadline=None, max_examples=300)
def test_best_spans_are_those_of_the_naive_search(drawn, n_best: int, max_length: int, at_once: int) -> None:
    start, end, allowed = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_PAIRS_AT_ONCE", at_once)  # in one part or in several
        score, first, last = best_spans(start, end, allowed, n_best, max_length)
    for i in range(len(start)):
        expected = naive_best(start[i].tolist(), end[i].tolist(), allowed[i].tolist(), n_best, max_length)
        if expected is None:
            assert score[i] == -np.inf
        else:
            assert (score[i], first[i], last[i]) == expected


@pytest.mark.parametrize("count", [1, 2, 5, 7, 9])
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_the_highest_are_the_first_of_a_stable_sort(count: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.sampled_from([(3, 1), (3, 7), (1, 12), (20, 2)]))
    lowest = float(np.finfo(np.float32).min)
    number = st.sampled_from([0.0, -0.0, 1.0, 1.5, -2.0, lowest, np.inf, -np.inf, np.nan])
    drawn = data.draw(st.lists(number, min_size=rows * columns, max_size=rows * columns))
    values = np.array(drawn, np.float32).reshape(rows, columns)
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    assert highest(values, count).tolist() == expected.tolist()


def test_best_span_refuses_what_leaves_the_paragraph_or_is_too_long() -> None:
    start, end = np.array([[9.0, 5, 1, 0]]), np.array([[9.0, 0, 2, 6]])
    score, first, last = best_spans(start, end, np.array([[False, True, True, True]]), 20, 30)
    assert (score[0], first[0], last[0]) == (11, 1, 3)
    score, first, last = best_spans(start, end, np.array([[False, True, True, True]]), 20, 2)
    assert (score[0], first[0], last[0]) == (7, 1, 2)
    score, *_ = best_spans(start, end, np.array([[False, True, True, True]]), 1, 30)
    assert score[0] == -np.inf  # the only candidates are outside


def test_padded_rows_are_filled_with_zeros() -> None:
    assert padded(np.array([5, 6, 7, 8]), np.array([3, 0, 1])).tolist() == [[5, 6, 7], [0, 0, 0], [8, 0, 0]]


def test_a_model_that_diverged_answers_nothing() -> None:
    start = np.full((2, 5), np.nan, np.float32)
    start[1] = [0, 0, 7, 0, 0]
    score, first, last = best_spans(start, np.ones((2, 5), np.float32), np.ones((2, 5), bool), 3, 30)
    assert not score[0] > -np.inf
    assert (score[1], first[1], last[1]) == (8, 2, 2)


# --- windows and labels -------------------------------------------------------------------------------------


def features(task: Span, content: list[dict[str, Any]], labels: bool) -> list[dict[str, Any]]:
    return list(task.features(table(content), TOKENIZER, None, labels=labels))  # type: ignore[arg-type]


def long_examples() -> list[dict[str, Any]]:
    """Paragraphs of which every other needs several windows, with the answer in its second half."""
    made: list[dict[str, Any]] = [dict(example) for example in generated(40, seed=5)]
    for before, one in zip(made[::2], made[1::2], strict=True):
        shift = len(before["context"]) + 1
        one["context"] = f"{before['context']} {one['context']}"
        starts = [start + shift for start in one["answers"]["answer_start"]]
        one["answers"] = {**one["answers"], "answer_start": starts}
    return made


LONG = long_examples()


def test_labels_map_back_to_the_answer_in_every_window_that_holds_it() -> None:
    task = Span(path="x", max_seq_length=64, doc_stride=20)
    train, evaluation = features(task, LONG, labels=True), features(task, LONG, labels=False)
    assert len(train) == len(evaluation) > len(LONG)
    held = set()
    for one, other in zip(train, evaluation, strict=True):
        assert one["input_ids"] == other["input_ids"]
        assert one["length"] == len(one["input_ids"]) <= 64
        assert one["input_ids"][0] == TOKENIZER.cls_token_id
        example = LONG[other["example"]]
        starts, ends = other["start_character"], other["end_character"]
        text, begin = example["answers"]["text"][0], example["answers"]["answer_start"][0]
        inside = [i for i, offset in enumerate(starts) if offset >= 0]
        whole = starts[inside[0]] <= begin and begin + len(text) <= ends[inside[-1]]
        span = one["start_positions"], one["end_positions"]
        if whole:
            held.add(other["example"])
            assert example["context"][starts[span[0]] : ends[span[1]]] == text
        else:
            assert span == (0, 0)
    assert held == set(range(len(LONG)))  # each question is answered by some window
    assert any(one["start_positions"] == 0 for one in train)  # and not by every window


def test_windows_share_the_stride_and_cover_the_paragraph() -> None:
    task = Span(path="x", max_seq_length=48, doc_stride=16)
    made = features(task, LONG[1:2], labels=False)
    assert len(made) > 2
    covered = [{o for o in one["start_character"] if o >= 0} for one in made]
    for one, following in itertools.pairwise(covered):
        assert len(one & following) == 16
    whole = TOKENIZER(LONG[1]["context"], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert set.union(*covered) == {start for start, _ in whole}


def test_only_tokens_of_the_paragraph_have_offsets() -> None:
    (one,) = features(Span(path="x"), [row("q", "Ada lives in Rome", "Rome", question="where does Ada live")], False)
    tokens = TOKENIZER.convert_ids_to_tokens(one["input_ids"])
    first = tokens.index("[SEP]") + 1
    assert one["start_character"] == [-1] * first + [0, 4, 10, 13] + [-1]
    assert one["end_character"] == [-1] * first + [3, 9, 12, 17] + [-1]
    assert one["example"] == 0


def test_answer_tokens_of_an_answer_inside_a_word_take_the_whole_word() -> None:
    offsets, context = [(0, 0), (0, 3), (4, 9), (10, 14), (0, 0)], [False, True, True, True, False]

    def span(text: str, start: int, context: list[bool] = context) -> tuple[int, int] | None:
        (only,) = answer_tokens({"text": [text], "answer_start": [start]}, [offsets], [context])
        return only

    assert span("ive", 5) == (2, 2)
    assert span("lives in R", 4) == (2, 3)
    assert span("Ada", 0, [False] * 5) is None
    assert answer_tokens({"text": [], "answer_start": []}, [offsets], [context]) == [None]
    halves = [[(0, 3), (4, 9)], [(4, 9), (10, 14)]]
    for text, start, expected in (("lives", 4, [(1, 1), (0, 0)]), ("Ada lives here", 0, [None, None])):
        assert answer_tokens({"text": [text], "answer_start": [start]}, halves, [[True, True]] * 2) == expected


def test_a_leading_blank_of_the_question_changes_nothing() -> None:
    plain, blank = (features(Span(path="x"), [row("q", "Ada ate", "Ada", question=q)], True) for q in ("who", "   who"))
    assert plain == blank


def test_perfect_logits_are_scored_as_perfect_over_all_windows() -> None:
    task = Span(path="x", max_seq_length=64, doc_stride=20)
    data = table(LONG)
    train, evaluation = (task.features(data, TOKENIZER, None, labels=labels) for labels in (True, False))
    lowest = float(np.finfo(np.float32).min)
    logits = [np.full((len(train), max(train["length"]) + 3), lowest, np.float32) for _ in range(2)]
    for window, length in enumerate(train["length"]):
        for side, name in enumerate(("start_positions", "end_positions")):
            logits[side][window, :length] = 0
            logits[side][window, train[name][window]] = 5
    scores = task.score(data, evaluation, logits)
    assert scores.metrics == {"exact_match": 1.0, "f1": 1.0}  # fractions
    assert scores.predictions == {one["id"]: one["answers"]["text"][0] for one in LONG}


def test_a_question_without_a_valid_span_is_answered_by_nothing() -> None:
    task = Span(path="x", n_best=1)
    data = table([row("q", "Ada ate", "Ada")])
    made = task.features(data, TOKENIZER, None, labels=False)
    logits = np.zeros((1, made[0]["length"]), np.float32)
    logits[0, 0] = 9  # [CLS] wins, and nothing else is looked at
    assert task.score(data, made, [logits, logits]).predictions == {"q": ""}


def test_features_are_cached_by_their_content(tmp_path: Path) -> None:
    data, task = table(LONG[:4]), Span(path="x", max_seq_length=64, doc_stride=20)
    cache = tmp_path / "deep" / "cache"
    first = task.features(data, TOKENIZER, cache, labels=True)
    (place,) = cache.glob("span-*/")
    before = place.stat().st_mtime_ns
    again = task.features(table(LONG[:4]), TOKENIZER, cache, labels=True)
    assert list(again) == list(first)
    assert again._fingerprint == first._fingerprint == task.features(data, TOKENIZER, None, labels=True)._fingerprint
    assert place.stat().st_mtime_ns == before
    other = Span(path="x", max_seq_length=48, doc_stride=20)
    other.features(data, TOKENIZER, cache, labels=True)
    task.features(data, TOKENIZER, cache, labels=False)
    task.features(table(LONG[:5]), TOKENIZER, cache, labels=True)
    assert len(list(cache.glob("span-*/"))) == 4


# --- SQuAD's own dev set ------------------------------------------------------------------------------------


def dev_set() -> datasets.Dataset:
    """SQuAD's dev questions, from the prepared hub."""
    hub = os.environ.get("PRUNE_DISTILL_HUB")
    if not hub:
        pytest.skip("PRUNE_DISTILL_HUB is not set: no folder with SQuAD's dev set")
    files = sorted((Path(hub) / "datasets/rajpurkar/squad/plain_text").glob("validation-*.parquet"))
    if not files:
        pytest.skip(f"{hub}/datasets/rajpurkar/squad/plain_text/validation-*.parquet is not there")
    return datasets.concatenate_datasets([datasets.Dataset.from_parquet(str(file)) for file in files])  # type: ignore[misc]


def peaked(lengths: list[int], width: int, step: float | None) -> list[np.ndarray]:
    """Logits as a model gives them: low nearly everywhere, a few high starts, and ends a few tokens behind them.

    Args:
        step: round to multiples of it, which makes many ties.
    """
    draw = np.random.default_rng(0)
    logits = [draw.normal(-6, 1.5, (len(lengths), width)).astype(np.float32) for _ in range(2)]
    for window, length in enumerate(lengths):
        for _ in range(3):
            first = int(draw.integers(0, length))
            last = min(first + int(draw.geometric(0.3)) - 1, length - 1)
            logits[0][window, first], logits[1][window, last] = draw.normal(5, 2, 2)
    if step is not None:
        logits = [np.round(side / step) * step for side in logits]
    padding = np.arange(width) >= np.array(lengths)[:, None]
    return [np.where(padding, np.finfo(np.float32).min, side) for side in logits]


def words_as_tokens() -> PreTrainedTokenizerBase:
    """A tokenizer for any text that makes one token of each word and each mark, all of them [UNK]."""
    special = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3}
    backend = Tokenizer(WordLevel(special, unk_token="[UNK]"))
    backend.pre_tokenizer = BertPreTokenizer()  # type: ignore[assignment]
    backend.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="module")
def dev_windows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Span, datasets.Dataset, datasets.Dataset]:
    """The task, all dev questions and their windows, short enough that many paragraphs need several."""
    task, questions = Span(path="x", max_seq_length=160, doc_stride=48), dev_set()
    made = task.features(questions, words_as_tokens(), tmp_path_factory.mktemp("dev"), labels=False)
    return task, questions, made


@pytest.mark.parametrize("step", [None, 0.5])
def test_all_dev_questions_are_answered_as_by_the_plain_loop(dev_windows: tuple, step: float | None) -> None:
    task, questions, made = dev_windows
    assert len(questions) == 10_570
    assert len(made) > 11_000
    lengths = made["length"][:]
    logits = peaked(lengths, max(lengths), step)
    best: dict[int, tuple[float, int, int]] = {}
    columns = (made[name][:] for name in ("example", "start_character", "end_character"))
    for window, (example, begins, ends) in enumerate(zip(*columns, strict=True)):
        # Lists of numpy's numbers: sums are rounded to float32, as in the usual loop, which decides ties.
        sides = [list(side[window]) for side in logits]
        found = naive_best(sides[0], sides[1], [begin >= 0 for begin in begins], task.n_best, task.max_answer_length)
        if found is not None and (example not in best or found[0] > best[example][0]):
            best[example] = found[0], begins[found[1]], ends[found[2]]
    contexts = questions["context"][:]
    texts = [contexts[i][best[i][1] : best[i][2]] if i in best else "" for i in range(len(contexts))]
    expected = dict(zip(questions["id"][:], texts, strict=True))
    assert len(set(texts)) > 5000

    scores = task.score(questions, made, logits)
    assert scores.predictions == expected
    metric = SquadMetric().compute(
        predictions=[{"id": id, "prediction_text": text} for id, text in expected.items()],
        references=[{"id": one["id"], "answers": {"text": one["answers"]["text"]}} for one in questions],
    )
    assert metric is not None
    assert scores.metrics == {name: value / 100 for name, value in metric.items()}


# --- subsets and hold-out -----------------------------------------------------------------------------------


def test_hold_out_keeps_paragraphs_whole_and_is_deterministic() -> None:
    data = table(rows(100))
    rest, held = split_by_context(data, 0.25, seed=1)
    assert len(rest) + len(held) == 100
    assert 25 <= len(held) <= 35  # whole paragraphs of ten
    assert not set(rest["context"]) & set(held["context"])
    again = split_by_context(data, 0.25, seed=1)
    assert (again[0]["id"], again[1]["id"]) == (rest["id"], held["id"])
    drawn = {tuple(split_by_context(data, 0.25, seed=seed)[1]["id"]) for seed in range(8)}
    assert len(drawn) > 3
    shuffled = list(rows(100))
    random.Random(0).shuffle(shuffled)
    assert set(split_by_context(table(shuffled), 0.25, seed=1)[1]["id"]) == set(held["id"])  # whatever the order


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Train and dev as SQuAD JSON."""
    (tmp_path / "train-v1.1.json").write_text(squad_json(rows(200)))
    (tmp_path / "dev-v1.1.json").write_text(squad_json([{**one, "id": f"dev-{one['id']}"} for one in rows(60)]))
    return tmp_path


def test_sample_limits_draw_the_same_subset_each_time_and_not_the_first(folder: Path) -> None:
    task = Span(path=str(folder), max_train_samples=50, max_eval_samples=20)
    one, again = task.read(), Span(path=str(folder), max_train_samples=50, max_eval_samples=20).read()
    assert one.train is not None
    assert again.train is not None
    assert (len(one.train), len(one.evaluation)) == (50, 20)
    assert one.train["id"] == again.train["id"]
    assert prints(one) == prints(again)
    first = [f"q{i}" for i in range(50)]
    assert list(one.train["id"]) != first
    assert len(set(one.train["context"])) >= 8  # of ten: not those of a handful of paragraphs
    numbers = [int(id[1:]) for id in one.train["id"]]
    assert numbers == sorted(numbers)
    other = Span(path=str(folder), max_train_samples=50, max_eval_samples=20, data_seed=1).read()
    assert other.train is not None
    assert list(other.train["id"]) != list(one.train["id"])
    assert [a != b for a, b in zip(prints(other), prints(one), strict=True)] == [True, True]


def test_a_limit_above_what_there_is_takes_all(folder: Path) -> None:
    read = Span(path=str(folder), max_train_samples=1000).read()
    assert read.train is not None
    assert len(read.train) == 200


def test_hold_out_scores_on_a_part_of_train_and_leaves_dev_alone(folder: Path) -> None:
    read = Span(path=str(folder), holdout=0.2).read()
    assert read.train is not None
    assert (len(read.train), len(read.evaluation)) == (160, 40)
    assert not [id for id in read.evaluation["id"] if id.startswith("dev-")]
    only = Span(path=str(folder / "train-v1.1.json"), holdout=0.2).read()
    assert list(only.evaluation["id"]) == list(read.evaluation["id"])


def test_without_training_only_the_evaluation_split_is_needed(folder: Path) -> None:
    read = Span(path=str(folder / "dev-v1.1.json")).read(train=False)
    assert read.train is None
    assert len(read.evaluation) == 60
    with pytest.raises(UserError, match=r"no train split.*train\*"):
        Span(path=str(folder / "dev-v1.1.json")).read()


# --- fingerprints -------------------------------------------------------------------------------------------


def test_the_fingerprint_is_the_same_whatever_holds_the_contents() -> None:
    content = [*rows(30), row("é", "Où est Zoë ? À Rome — 東京", "東京")]
    expected = fingerprint(table(content))
    pieces = datasets.concatenate_datasets([table(content[:7]), table(content[7:8]), table(content[8:])])
    assert pieces.data["id"].num_chunks == 3
    assert fingerprint(pieces) == expected
    other = datasets.Features({
        "question": datasets.Value("large_string"), "context": datasets.Value("large_string"),
        "id": datasets.Value("large_string"),
        "answers": {"answer_start": datasets.LargeList(datasets.Value("int32")),
                    "text": datasets.List(datasets.Value("large_string"))},
    })  # fmt: skip
    assert fingerprint(datasets.Dataset.from_list(content, features=other)) == expected
    longer = table([*rows(3), *content, *rows(2)])
    assert fingerprint(longer.select(range(3, 34))) == expected  # a slice of the same buffers
    backwards = table(content[::-1])
    assert fingerprint(backwards.select(range(30, -1, -1))) == expected  # rows that are gathered
    assert fingerprint(table([{**one, "title": "t"} for one in content])) == expected  # a column that is not used


def changed(**changes: Any) -> list[dict[str, Any]]:
    """Two questions, the second one changed."""
    one, other = row("a", "Ada ate", "Ada"), row("b", "Bob ate", "Bob")
    return [one, {**other, **changes}]


DIFFERENT = {
    "as it was": changed(),
    "id": changed(id="c"),
    "context": changed(context="Bob ate."),
    "question": changed(question="whom"),
    "missing question": changed(question=None),
    "empty question": changed(question=""),
    "answer": changed(answers={"text": ["Bo"], "answer_start": [0]}),
    "offset": changed(answers={"text": ["Bob"], "answer_start": [1]}),
    "two answers": changed(answers={"text": ["Bob", "Bob"], "answer_start": [0, 0]}),
    "no answer": changed(answers={"text": [], "answer_start": []}),
    "missing answer": changed(answers=None),
    "order": changed()[::-1],
    "one less": changed()[:1],
    "words moved to the neighbour": [{**row("a", "Ada ateBob", "Ada")}, changed(context=" ate")[1]],
    "answers moved to the neighbour": [
        {**changed()[0], "answers": {"text": ["Ada", "Bob"], "answer_start": [0, 0]}},
        changed(answers={"text": [], "answer_start": []})[1],
    ],
    "ids are numbers": [{**one, "id": i} for i, one in enumerate(changed())],
    "ids are numerals": [{**one, "id": str(i)} for i, one in enumerate(changed())],
}


def test_whatever_differs_has_another_fingerprint() -> None:
    prints = {name: fingerprint(table(content)) for name, content in DIFFERENT.items()}
    assert len(prints) == 17
    assert len(set(prints.values())) == 17, prints


# --- local sources ------------------------------------------------------------------------------------------


def test_json_lines_and_parquet_are_the_same_as_squad_json(folder: Path, tmp_path: Path) -> None:
    expected = Span(path=str(folder)).read()
    lines, parquet = tmp_path / "lines", tmp_path / "parquet"
    for name, content in (("train", rows(200)), ("validation", [{**o, "id": f"dev-{o['id']}"} for o in rows(60)])):
        for kind in (lines, parquet):
            kind.mkdir(exist_ok=True)
        (lines / f"{name}.jsonl").write_text(json_lines(content))
        table(content).to_parquet(parquet / f"{name}-00000-of-00001.parquet")
    for path in (lines, parquet):
        read = Span(path=str(path)).read()
        assert read.train is not None
        assert (len(read.train), len(read.evaluation)) == (200, 60)
        assert prints(read) == prints(expected)
        assert read.source == str(path)


def test_several_files_make_a_split(tmp_path: Path) -> None:
    content = rows(30)
    (tmp_path / "train-1.jsonl").write_text(json_lines(content[:10]))
    (tmp_path / "train-2.jsonl").write_text(json_lines(content[10:]))
    (tmp_path / "test.json").write_text(json_lines(content[:5]))  # JSON lines under another name
    read = Span(path=str(tmp_path)).read()
    assert read.train is not None
    assert list(read.train["id"]) == [one["id"] for one in content]
    assert len(read.evaluation) == 5


def test_text_beyond_ascii_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(squad_json([row("é", "Où est Zoë ? À Rome — 東京", "東京")]), encoding="utf-8")
    read = Span(path=str(tmp_path)).read(train=False)
    assert read.evaluation[0]["answers"] == {"text": ["東京"], "answer_start": [24 - len("東京")]}


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        Span(path=str(path), **options).read()
    return str(caught.value)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    content = [{"id": one["id"], "passage": one["context"], "question": "who"} for one in rows(3)]
    (tmp_path / "train.jsonl").write_text(json_lines(content))
    text = refused(tmp_path)
    assert 'there is no column "context" or "answers"' in text
    assert "it has id, passage, question" in text
    assert "train.jsonl" in text
    assert "dataset.context=COLUMN dataset.answers=COLUMN" in text


def test_answers_of_another_shape_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json_lines([{**one, "answers": "Ada"} for one in rows(3)]))
    assert "the column answers needs the fields text and answer_start" in refused(tmp_path)


def test_empty_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"data": []}')
    (tmp_path / "dev.json").write_text(squad_json(rows(3)))
    assert str(tmp_path) in refused(tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"data": [{"paragraphs": [{"context": "a"}]}]}')
    assert "train.json is not in SQuAD's JSON format: question 1: KeyError('qas')" in refused(tmp_path)
    (tmp_path / "train.json").write_text("nonsense")
    assert "train.json cannot be read as json" in refused(tmp_path)
    (tmp_path / "train.json").unlink()
    (tmp_path / "train.parquet").write_text("nonsense")
    assert "train.parquet cannot be read as parquet" in refused(tmp_path)


def test_a_folder_without_usable_files_is_refused(tmp_path: Path) -> None:
    assert "this folder has no .csv, .tsv, .json, .jsonl, .parquet file" in refused(tmp_path)
    (tmp_path / "one.json").write_text(squad_json(rows(3)))
    assert "name the files train*, dev*" in refused(tmp_path)
    assert "there is no such file or folder" in refused(tmp_path / "nowhere")


def test_without_an_evaluation_split_a_tenth_of_train_becomes_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "train.json").write_text(squad_json(rows(200)))
    with caplog.at_level("INFO"):
        read = Span(path=str(tmp_path)).read()
    assert "has no evaluation split: 0.1 of train becomes it, drawn with dataset.data_seed=0" in caplog.text
    assert read.train is not None
    assert (len(read.train), len(read.evaluation)) == (180, 20)
    assert list(read.evaluation["id"]) == list(Span(path=str(tmp_path), holdout=0.1).read().evaluation["id"])
    (tmp_path / "train.json").rename(tmp_path / "dev.json")
    assert "needs a train split" in refused(tmp_path, holdout=0.5)


BAD = [
    row("moved", "Ada lives in Rome", "Rome", start=12),
    row("other", "Ada lives in Rome", "Paris", start=13),
    row("past", "Ada", "Ada", start=-3),
    {**row("empty", "Ada", "Ada"), "answers": {"text": [""], "answer_start": [0]}},
    {**row("none", "Ada", "Ada"), "answers": {"text": [], "answer_start": []}},
    {**row("second", "Ada in Rome", "Ada"), "answers": {"text": ["Ada", "Rome"], "answer_start": [0, 3]}},
    {**row("more texts", "Ada", "Ada"), "answers": {"text": ["Ada", "Ada"], "answer_start": [0]}},
    {**row("more offsets", "Ada", "Ada"), "answers": {"text": ["Ada"], "answer_start": [0, 0]}},
    {**row("no text", "Ada", "Ada"), "answers": {"text": [None], "answer_start": [0]}},
    {**row("no offset", "Ada", "Ada"), "answers": {"text": ["Ada"], "answer_start": [None]}},
    {**row("no answers", "Ada", "Ada"), "answers": None},
    {**row("no texts", "Ada", "Ada"), "answers": {"text": None, "answer_start": [0]}},
    {**row("no context", "Ada", "Ada"), "context": None},
]


@pytest.mark.parametrize("bad", BAD, ids=[one["id"] for one in BAD])
def test_an_answer_that_is_not_at_its_offset_is_refused(bad: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "dev.jsonl").write_text(json_lines(rows(4)))
    (tmp_path / "train.jsonl").write_text(json_lines([*rows(4), bad]))
    text = refused(tmp_path)
    assert "1 of 5 questions" in text
    assert f"(ids {bad['id']})" in text
    assert "dataset.drop_misaligned=true" in text


def test_misaligned_answers_are_counted_and_dropped_only_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = [row(f"bad{i}", "Ada lives in Rome", "Rome", start=i) for i in range(8)]
    (tmp_path / "dev.jsonl").write_text(json_lines(rows(4)))
    (tmp_path / "train.jsonl").write_text(json_lines([*many[:3], *rows(4), *many[3:]]))
    assert "8 of 12 questions" in refused(tmp_path)
    assert "(ids bad0, bad1, bad2, bad3, bad4, ...)" in refused(tmp_path)
    read = Span(path=str(tmp_path), drop_misaligned=True).read()
    assert read.train is not None
    assert list(read.train["id"]) == ["q0", "q1", "q2", "q3"]
    assert "8 questions left out, misaligned: bad0, bad1, bad2, bad3, bad4, ..." in caplog.text
    (tmp_path / "train.jsonl").write_text(json_lines(many))
    assert "there are no examples" in refused(tmp_path, drop_misaligned=True)


@pytest.mark.parametrize(("options", "key"), [
    ({"holdout": 1.0}, "dataset.holdout=1.0"),
    ({"holdout": -0.1}, "dataset.holdout=-0.1"),
    ({"max_train_samples": 0}, "dataset.max_train_samples=0"),
    ({"max_eval_samples": -1}, "dataset.max_eval_samples=-1"),
    ({"n_best": 0}, "dataset.n_best=0"),
    ({"max_answer_length": 0}, "dataset.max_answer_length=0"),
    ({"doc_stride": 0}, "dataset.doc_stride=0"),
    ({"doc_stride": 380}, "dataset.doc_stride=380"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Span(path="x", **options)


def test_generated_examples_are_read_as_any_other() -> None:
    read = Demo(train_examples=30, eval_examples=20).read()
    assert read.train is not None
    assert (len(read.train), len(read.evaluation)) == (30, 20)
    assert prints(read) == prints(Demo(train_examples=30, eval_examples=20).read())
    other = prints(Demo(train_examples=30, eval_examples=20, data_seed=1).read())
    assert [a != b for a, b in zip(prints(read), other, strict=True)] == [True, True]
    assert not set(read.train["context"]) & set(read.evaluation["context"])


def test_a_question_that_leaves_its_paragraph_no_room_is_refused() -> None:
    task = Span(path="x", max_seq_length=40, doc_stride=16)
    content = table([row("q", "Ada lives in Rome " * 20, "Ada", question="who " * 22)])
    with pytest.raises(UserError, match=r"1 of 1 questions are so long .*max_seq_length=40 .*doc_stride=16"):
        task.features(content, TOKENIZER, None, labels=True)

"""Extractive question answering in SQuAD's format: find the span of a paragraph that answers a question."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pruning import Prediction
from runner.data import arrow, sources
from runner.data.splits import Part, Splits
from runner.data.squad_scores import best_of, best_of_v2, best_threshold, means
from runner.data.task import SPLIT, Dataset, Scores, told_length
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

COLUMNS = ("id", "context", "question", "answers")
SCORED = ("exact_match", "f1")  # in the order in which a question's scores come
_NOT_CONTEXT = -1  # the offset of tokens that cannot be part of an answer
_PAIRS_AT_ONCE = 2**20  # start and end tokens that are combined at once: some 20 MB
_SURELY = 3.4e38  # in place of infinity, which JSON cannot hold: about the highest float32
Best = tuple[float, int, int]
"""A span: the sum of its logits, and its characters, from and to."""


@dataclass
class Span(Dataset):
    """A dataset of the SQuAD kind: columns id, context, question, answers {text, answer_start}.

    Beside the files that all kinds of task read, a SQuAD JSON file is read, of v1.1 or v2.0.
    """

    id: str = "id"
    """Column of the question's id."""
    context: str = "context"
    """Column of the paragraph."""
    question: str = "question"
    """Column of the question."""
    answers: str = "answers"
    """Column of the answers: records of `text` and `answer_start`, two lists of the same length."""
    answer_text: str | None = None
    """Instead of `answers`, for files with one answer in each row: column of its text."""
    answer_start: str | None = None
    """Together with `answer_text`: column of the character where it begins in the paragraph."""
    doc_stride: int = 128
    """Tokens that two neighbouring windows of a long paragraph share."""
    n_best: int = 20
    """Start and end tokens considered for each window."""
    max_answer_length: int = 30
    """Tokens in an answer, at most."""
    unanswerable: bool = False
    """Questions may have no answer, as in SQuAD v2.0: both lists of `answers` are empty then."""
    null_threshold: float = 0.0
    """With `unanswerable`: a question is answered unless the logits of no answer exceed those of its best span by more
    than this, a difference of sums of logits. Choose it on a hold-out of train, where `runner.evaluate` prints the best
    one, never on the split that the table reports."""
    drop_misaligned: bool = False
    """Leave out questions whose answer does not occur at its offset, instead of refusing the data."""
    metric: str = "f1"
    """The main metric, which names the columns of the table: f1 or exact_match."""

    architecture: ClassVar[str] = "AutoModelForQuestionAnswering"
    pipeline_tag: ClassVar[str] = "question-answering"
    label_names: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match")
    scoring: ClassVar[tuple[str, ...]] = ("metric", "n_best", "max_answer_length", "null_threshold")
    selecting: ClassVar[tuple[str, ...]] = (
        *Dataset.selecting, "id", "context", "question", "answers", "answer_text", "answer_start", "drop_misaligned",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("n_best", "max_answer_length"):
            if getattr(self, key) < 1:
                raise UserError(f"dataset.{key}={getattr(self, key)} is out of range: at least 1")
        if (self.answer_text is None) != (self.answer_start is None):
            raise UserError("dataset.answer_text and dataset.answer_start name columns together, or neither is given")
        if not math.isfinite(self.null_threshold):
            raise UserError(f"dataset.null_threshold={self.null_threshold} is out of range: a difference of logits")
        if self.null_threshold and not self.unanswerable:
            raise UserError(
                f"dataset.null_threshold={self.null_threshold} has no effect where every question has an answer; where "
                "questions may have none, set dataset.unanswerable=true"
            )
        # A window holds [CLS] question [SEP] part of the paragraph [SEP]; the stride must be less than that part.
        if not 0 < self.doc_stride < self.max_seq_length - 8:
            raise UserError(
                f"dataset.doc_stride={self.doc_stride} does not fit dataset.max_seq_length={self.max_seq_length}: "
                "the stride must be positive and well below it"
            )

    # --- reading --------------------------------------------------------------------------------------------

    def splits(self) -> Splits:
        texts = [self.id, self.context, self.question, *([self.answer_text] if self.answer_text else [])]
        return sources.load(
            sources.Source(
                self.path, self.name, self.revision, self.train_split, self.evaluation_splits, texts,
                {".json": read_squad_json},
            )
        )  # fmt: skip

    def named(self, splits: Splits) -> tuple[Part | None, dict[str, Part]]:
        evaluation = {name: self._named(part) for name, part in splits.evaluation.items()}
        return (self._named(splits.train) if splits.train is not None else None), evaluation

    def _named(self, part: Part) -> Part:
        given = {"id": self.id, "context": self.context, "question": self.question}
        if self.answer_text is None or self.answer_start is None:
            found = sources.renamed(part, {**given, "answers": self.answers})
            _check_answers_column(found)
        else:
            found = sources.renamed(part, {**given, "text": self.answer_text, "answer_start": self.answer_start})
            sources.check_text(found, "text", self.answer_text, missing=True)
            found = found.holding(_with_single_answers(found, self.answer_start))
        for ours in ("context", "question"):
            sources.check_text(
                found, ours, given[ours], missing=ours == "context"
            )  # no context: is told with the answers
        ids = sources.ids(found, self.id)
        others = found.examples.select_columns([name for name in COLUMNS if name != "id"])
        return found.holding(others.add_column("id", ids).select_columns(list(COLUMNS)))  # type: ignore[call-arg]

    def groups(self, examples: datasets.Dataset) -> Sequence[str]:
        return list(map(str, arrow.table(examples, "context")["context"].to_pylist()))

    def checked(self, part: Part) -> Part:
        return check_answers(part, self.drop_misaligned, self.unanswerable)

    def fingerprint(self, examples: datasets.Dataset) -> str:
        return fingerprint(examples)

    # --- features -------------------------------------------------------------------------------------------

    def configure(self, config: PretrainedConfig, examples: datasets.Dataset, given: str | None) -> None:
        if given and config.num_labels != 2:
            raise UserError(
                f"{given}: its head has {config.num_labels} outputs, and spans need two, a start and an end"
            )
        config.num_labels = 2

    def tokenising(self) -> list[Any]:
        return [self.max_seq_length, self.doc_stride, *(["unanswerable"] if self.unanswerable else [])]

    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        try:
            encoded = tokenizer(
                [question.lstrip() for question in batch["question"]],  # leading blanks would eat into the paragraph
                batch["context"],
                truncation="only_second",
                max_length=self.max_seq_length,
                stride=self.doc_stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the tokenizer's Rust, which is no Exception
                raise
            raise UserError(
                f"a question is so long that dataset.max_seq_length={self.max_seq_length} leaves its paragraph no more "
                f"than dataset.doc_stride={self.doc_stride} tokens: raise the first, or lower the second"
            ) from None
        rows = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        context = [[part == 1 for part in encoded.sequence_ids(i)] for i in range(len(rows))]
        columns: dict[str, list] = {name: encoded[name] for name in encoded}
        nowhere = [null_token(tokens, tokenizer) if self.unanswerable else 0 for tokens in encoded["input_ids"]]
        if labels:
            spans = [
                answer_tokens(batch["answers"][row], offset, inside, null)
                for row, offset, inside, null in zip(rows, offsets, context, nowhere, strict=True)
            ]
            columns["start_positions"] = [start for start, _ in spans]
            columns["end_positions"] = [end for _, end in spans]
        else:
            columns["example"] = [indices[row] for row in rows]
            for side, name in enumerate(("start_character", "end_character")):
                columns[name] = [
                    [o[side] if is_context else _NOT_CONTEXT for o, is_context in zip(offset, inside, strict=True)]
                    for offset, inside in zip(offsets, context, strict=True)
                ]
            if self.unanswerable:
                columns["null_token"] = nowhere
        return columns

    # --- outputs --------------------------------------------------------------------------------------------

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        return Prediction((outputs.start_logits, outputs.end_logits), choices=tokens, tokens=tokens)

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        return 2 * sum(features["length"])

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        best = self._best(features, logits)
        answers = _texts(examples, best)
        given = arrow.table(examples, "id", "answers")
        gold = dict(zip(given["id"].to_pylist(), arrow.lists(arrow.field(given["answers"], "text")), strict=True))
        splits = _ids_by_split(examples, list(gold))
        counted, choosing = next(iter(splits.values())), {}
        if self.unanswerable:
            no_answer = dict(zip(gold, no_answer_scores(features, logits, best, len(examples)), strict=True))
            choosing = self._choosing(counted, no_answer, answers, gold)
            answers = {id: "" if no_answer[id] > self.null_threshold else text for id, text in answers.items()}
        of_one = best_of_v2 if self.unanswerable else best_of
        found = {id: of_one(answers[id], texts) for id, texts in gold.items()}
        metrics: dict[str, float] = {}
        for split, ids in splits.items():
            suffix = "" if ids is counted else f"_{split}"
            metrics |= {f"{name}{suffix}": value for name, value in self._metrics(ids, found, gold).items()}
        main = SCORED.index(self.metric)
        return Scores(metrics, answers, {id: found[id][main] for id in counted}, choosing=choosing)

    def _metrics(
        self, ids: Sequence[str], found: Mapping[str, tuple[float, float]], gold: Mapping[str, list[str]]
    ) -> dict[str, float]:
        """The means over some questions, and over those of them that have an answer and that have none."""
        groups = {"": ids}
        if self.unanswerable:
            groups |= {"has_answer_": [id for id in ids if gold[id]], "no_answer_": [id for id in ids if not gold[id]]}
        scores = {prefix: means(found[id] for id in members) for prefix, members in groups.items() if members}
        return {f"{prefix}{name}": value / 100 for prefix, of in scores.items() for name, value in of.items()}

    def _choosing(
        self,
        ids: Sequence[str],
        no_answer: Mapping[str, float],
        spans: Mapping[str, str],
        gold: Mapping[str, list[str]],
    ) -> dict[str, float]:
        """What the threshold that is best on these very questions would give, and that threshold."""
        main = SCORED.index(self.metric)
        if_answered = [best_of_v2(spans[id], gold[id])[main] for id in ids]
        best, threshold = best_threshold([no_answer[id] for id in ids], if_answered, [bool(gold[id]) for id in ids])
        return {f"best_{self.metric}": best, f"best_{self.metric}_threshold": threshold}

    def _best(self, features: datasets.Dataset, logits: list[np.ndarray]) -> dict[int, Best]:
        """The best span over all windows of each question that has a valid one, by the question's number."""
        import numpy as np

        windows = arrow.table(features, "example", "start_character", "end_character")
        starts, lengths = arrow.ragged(windows["start_character"])
        ends, _ = arrow.ragged(windows["end_character"])
        score, first, last = best_spans(
            logits[0], logits[1], padded(starts >= 0, lengths), self.n_best, self.max_answer_length
        )
        found = score > -np.inf
        row = (np.cumsum(lengths) - lengths)[found]  # where each window begins in `starts` and `ends`
        best: dict[int, Best] = {}
        example = windows["example"].to_numpy()[found]
        begin, stop = starts[row + first[found]], ends[row + last[found]]
        spans = (column.tolist() for column in (example, score[found], begin, stop))
        for i, value, *characters in zip(*spans, strict=True):
            if i not in best or value > best[i][0]:
                best[i] = (value, *characters)
        return best

    # --- for people -----------------------------------------------------------------------------------------

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        gold = list(dict.fromkeys(example["answers"]["text"]))
        start, stop = 0, _AROUND  # of a paragraph without the answer its beginning
        if gold:
            start = example["answers"]["answer_start"][0]
            stop = start + len(gold[0])
        return {
            "Question": example["question"].strip(),
            "Paragraph": excerpt(example["context"], start, stop),
            "Gold answers": " | ".join(gold) or "(no answer)",
        }

    def kinds(self, example: Mapping[str, Any]) -> dict[str, str]:
        gold = example["answers"]["text"]
        answerable = {"Answerable": "yes" if gold else "no"} if self.unanswerable else {}
        return {
            **answerable,
            "Question word": question_word(example["question"]),
            "Length of the answer": told_length(len(gold[0].split()), (1, 2, 4)) if gold else "no answer",
            "Length of the paragraph": told_length(len(example["context"].split()), (50, 100, 150, 200)),
        }


_QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how")
_OF_WHO = ("whom", "whose")
_AROUND = 100  # characters of a paragraph on either side of an answer


def question_word(question: str) -> str:
    """The first word of a question that asks: "In what year" asks what; "how many" and "how much" are one."""
    words = re.findall(r"\w+", question.lower())
    for at, word in enumerate(words):
        if word == "how" and words[at + 1 : at + 2] in (["many"], ["much"]):
            return "how many"
        if word in _QUESTION_WORDS or word in _OF_WHO:
            return "who" if word in _OF_WHO else word
    return "other"


def excerpt(text: str, start: int, stop: int) -> str:
    """The part of a text around its characters from `start` to `stop`, in whole words, on one line."""
    first, last = max(0, start - _AROUND), min(len(text), stop + _AROUND)
    while 0 < first < start and not text[first - 1].isspace():
        first += 1
    while stop < last < len(text) and not text[last].isspace():
        last -= 1
    part = " ".join(text[first:last].split())
    return ("… " if first else "") + part + (" …" if last < len(text) else "")


def best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, n_best: int, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best span of each window: of the `n_best` start and end tokens the pair with the highest sum of logits.

    As in the official BERT code, a pair is refused if it leaves the paragraph, ends before it starts or is longer
    than `max_length` tokens. Of equals the first counts, both among tokens and among pairs.

    Args:
        start, end: [windows, tokens] logits.
        allowed: bool [windows, tokens], true for tokens of the paragraph.

    Returns:
        The sum of logits (-inf if no pair is valid), first and last token, [windows] each.
    """
    import numpy as np

    allowed = np.pad(allowed, ((0, 0), (0, start.shape[1] - allowed.shape[1])))
    at_once = max(1, _PAIRS_AT_ONCE // min(n_best, start.shape[1]) ** 2)
    parts = [
        _best_spans(start[i : i + at_once], end[i : i + at_once], allowed[i : i + at_once], n_best, max_length)
        for i in range(0, len(start), at_once)
    ]
    score, first, last = (np.concatenate(part) for part in zip(*parts, strict=True))
    return score, first, last


def _best_spans(
    start: np.ndarray, end: np.ndarray, allowed: np.ndarray, n_best: int, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    first, last = highest(start, n_best), highest(end, n_best)
    row = np.arange(len(start))[:, None]
    total = start[row, first][:, :, None] + end[row, last][:, None, :]  # [windows, n_best, n_best]
    length = last[:, None, :] - first[:, :, None] + 1
    valid = (length >= 1) & (length <= max_length)
    valid &= allowed[row, first][:, :, None] & allowed[row, last][:, None, :]
    total = np.where(valid, total, -np.inf).reshape(len(start), -1)
    best = total.argmax(axis=1)
    i, j = np.divmod(best, last.shape[1])
    window = np.arange(len(start))
    return total[window, best], first[window, i], last[window, j]


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest of each row, the highest first, and of equals the one with the lowest index."""
    import numpy as np

    if count >= values.shape[1]:
        return np.argsort(-values, axis=1, kind="stable")
    # Sorting whole rows takes most of the time of scoring. Instead: all that is above the last one that is taken, and
    # of its equals the first ones, as many as are left.
    lowest = -np.partition(-values, count - 1, axis=1)[:, count - 1 : count]
    if np.isnan(lowest).any():  # a model that diverged
        return np.argsort(-values, axis=1, kind="stable")[:, :count]
    taken, equal = values > lowest, values == lowest
    taken |= equal & (equal.cumsum(axis=1) <= count - taken.sum(axis=1, keepdims=True))
    index = np.nonzero(taken)[1].reshape(len(values), count)
    order = np.argsort(-np.take_along_axis(values, index, axis=1), axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1)


def no_answer_scores(
    features: datasets.Dataset, logits: list[np.ndarray], best: Mapping[int, Best], questions: int
) -> list[float]:
    """By how much the logits of no answer exceed those of the best span, of each question.

    As in the official BERT code, those of no answer are the sum of the start and end logits at [CLS], of the window in
    which it is lowest: a question has no answer only if no window holds it. A question without a valid span, and one
    whose logits are no numbers, surely has none.
    """
    import numpy as np

    windows = arrow.table(features, "example", "null_token")
    token, example = (windows[name].to_numpy() for name in ("null_token", "example"))
    row = np.arange(len(token))
    null = logits[0][row, token] + logits[1][row, token]
    lowest = np.full(questions, np.inf, null.dtype)
    spans = np.array([best[i][0] if i in best else -np.inf for i in range(questions)])
    with np.errstate(invalid="ignore"):  # a model that diverged
        np.minimum.at(lowest, example, null)
        difference = lowest.astype(np.float64) - spans
    return np.nan_to_num(difference, nan=_SURELY, posinf=_SURELY, neginf=-_SURELY).tolist()


def null_token(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The place of the token that stands for no answer: [CLS], wherever a model has it, else the token that begins a
    text, else the first one."""
    for special in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if special in tokens:
            return tokens.index(special)
    return 0


def padded(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of unequal length, given one after the other, as one matrix, filled up with zeros or false."""
    import numpy as np

    inside = np.arange(lengths.max()) < lengths[:, None]
    out = np.zeros(inside.shape, values.dtype)
    out[inside] = values
    return out


def answer_tokens(
    answers: Mapping[str, list], offsets: list[tuple[int, int]], context: list[bool], nowhere: int = 0
) -> tuple[int, int]:
    """First and last token of the first answer; twice `nowhere`, the [CLS] token, if this window does not hold all of
    it, or there is none."""
    if not answers["answer_start"]:
        return nowhere, nowhere
    begin = answers["answer_start"][0]
    stop = begin + len(answers["text"][0])
    inside = [i for i, is_context in enumerate(context) if is_context]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < stop:
        return nowhere, nowhere
    first = max(i for i in inside if offsets[i][0] <= begin)
    last = min(i for i in inside if offsets[i][1] >= stop)
    return first, last


def _texts(examples: datasets.Dataset, best: Mapping[int, Best]) -> dict[str, str]:
    """Question id -> the text of its best span."""
    asked = arrow.table(examples, "id", "context")
    pairs = zip(asked["id"].to_pylist(), asked["context"].to_pylist(), strict=True)
    # A question without any valid span (possible only for n_best very small) is answered by nothing.
    return {id: context[slice(*best[i][1:])] if i in best else "" for i, (id, context) in enumerate(pairs)}


def _ids_by_split(examples: datasets.Dataset, ids: Sequence[str]) -> dict[str, list[str]]:
    """The questions of each evaluation split, under its name; of a single one under none."""
    if SPLIT not in examples.column_names:
        return {"": list(ids)}
    found: dict[str, list[str]] = {}
    for split, id in zip(arrow.table(examples, SPLIT)[SPLIT].to_pylist(), ids, strict=True):
        found.setdefault(split, []).append(id)
    return found


def fingerprint(examples: datasets.Dataset) -> str:
    """Hash of the contents, whatever file they came from."""
    digest = hashlib.sha256()
    columns = arrow.table(examples, *COLUMNS)
    for name in ("id", "context", "question"):
        arrow.feed(digest, columns[name])
    for name in ("text", "answer_start"):
        arrow.feed(digest, arrow.field(columns["answers"], name))
    return digest.hexdigest()


def _check_answers_column(part: Part) -> None:
    answers = part.examples.features["answers"]
    fields = set(answers) if isinstance(answers, dict) else set()
    if not {"text", "answer_start"} <= fields:
        raise UserError(f"{part.name}: the column answers needs the fields text and answer_start, it is {answers}")
    kinds = {
        name: getattr(getattr(answers[name], "feature", None), "dtype", "no list") for name in ("text", "answer_start")
    }
    if kinds["text"] not in ("string", "large_string", "null") or not re.match("u?int|null", kinds["answer_start"]):
        raise UserError(
            f"{part.name}: the column answers needs lists of text and of whole numbers, not of {kinds['text']} and "
            f"{kinds['answer_start']}"
        )


def _with_single_answers(part: Part, told: str) -> datasets.Dataset:
    """Columns text and answer_start as the lists of one answer each that SQuAD has.

    Args:
        told: the data's name of the column `answer_start`, for messages.
    """
    values = arrow.table(part.examples, "answer_start")["answer_start"].to_pylist()
    starts = [_character(value) for value in values]
    bad = [i for i, start in enumerate(starts) if start is None and values[i] not in (None, "")]
    if bad:
        raise UserError(f"{part.where_all(bad)}: column {told}: {values[bad[0]]!r} is no number of a character, from 0")
    answers = [
        {"text": [text] if text else [], "answer_start": [] if start is None else [start]}
        for text, start in zip(part.examples["text"], starts, strict=True)
    ]
    return part.examples.select_columns(["id", "context", "question"]).add_column("answers", answers)  # type: ignore[call-arg]


def _character(value: Any) -> int | None:
    """A whole number, however it is written; None if it is none."""
    try:
        return int(value) if float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def check_answers(part: Part, drop: bool, unanswerable: bool = False) -> Part:
    """Refuse, or drop if asked, questions with an answer that is not at its offset, and those without one, unless they
    may be `unanswerable`."""
    columns = arrow.table(part.examples, "context", "answers")
    fields = [arrow.field(columns["answers"], name) for name in ("text", "answer_start")]
    # Missing lists are not empty ones, which say that there is no answer.
    missing = [any(each) for each in zip(*(field.is_null().to_pylist() for field in fields), strict=True)]
    rows = zip(columns["context"].to_pylist(), *map(arrow.lists, fields), missing, strict=True)
    bad, without = [], 0
    for i, (context, texts, starts, is_missing) in enumerate(rows):
        if not (texts or starts or is_missing or context is None):
            without += 1
            if unanswerable:
                continue
        elif _aligned(context, texts, starts):
            continue
        bad.append(i)
    if not bad:
        return part
    ids = part.examples["id"]
    named = ", ".join(str(ids[i]) for i in bad[:5]) + (", ..." if len(bad) > 5 else "")
    if not drop:
        raise UserError(
            f"{part.where(bad[0])}: {len(bad)} of {len(part.examples)} questions have no answer, or one that does not "
            f"occur at its answer_start (ids {named}); correct them, or leave them out with "
            "dataset.drop_misaligned=true" + _if_meant(without, unanswerable)
        )
    logging.getLogger(__name__).warning("%s: %d questions left out, misaligned: %s", part.name, len(bad), named)
    wrong = set(bad)
    return part.select([i for i in range(len(part.examples)) if i not in wrong])


def _if_meant(without: int, unanswerable: bool) -> str:
    if unanswerable:
        return "; a question that has no answer has two empty lists, text and answer_start"
    return f"; if {without} of them are meant to have no answer, dataset.unanswerable=true" if without else ""


def _aligned(context: str | None, texts: list[str | None], starts: list[int | None]) -> bool:
    """Whether there are answers, each of which stands in the context at its offset."""
    if context is None or not texts or len(texts) != len(starts):
        return False
    return all(
        text and start is not None and start >= 0 and context.startswith(text, start)
        for text, start in zip(texts, starts, strict=True)
    )


def read_squad_json(file: Path) -> list[dict[str, Any]] | None:
    """The questions of an official SQuAD JSON file, flat; None if it is another kind of JSON.

    Raises:
        UserError: it has "data", and no questions below it, or contradicts itself.
    """
    text = sources.read_text(file)
    if not (text.lstrip().startswith("{") and '"data"' in text[:10_000_000]):
        return None
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:  # several objects in a file: JSON lines under another name
        return None
    found: list[dict[str, Any]] = []
    try:
        for question in _questions(whole):
            found.append(question)  # one by one: a message says which is wrong
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not in SQuAD's JSON format: question {len(found) + 1}: {error!r} is missing or of a wrong kind"
        ) from error
    wrong = [one["id"] for one in found if one.pop("is_impossible") not in (None, not one["answers"]["text"])]
    if wrong:
        raise UserError(
            f"{file}: {len(wrong)} questions have answers and is_impossible=true, or neither (such as {wrong[0]}): "
            "correct them"
        )
    return found


def _questions(whole: Any) -> Iterator[dict[str, Any]]:
    for article in whole["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                impossible = qa.get("is_impossible")
                # Not plausible_answers: they are what an annotator found that the question does not ask for.
                answers = qa.get("answers", []) if impossible else qa["answers"]
                yield {
                    "id": str(qa["id"]),
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                    "is_impossible": impossible,
                }

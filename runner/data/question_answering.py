"""Extractive question answering in SQuAD's format: find the span of a paragraph that answers a question."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from pruning import Prediction
from runner.data import arrow
from runner.data.answers import COLUMNS, IMPOSSIBLE, check_answers, fingerprint, from_lists, from_single
from runner.data.examples import Examples
from runner.data.files import Reader
from runner.data.readable import AROUND, excerpt, length_range, question_word
from runner.data.scores import Scores
from runner.data.span_scores import Scoring, advise, by_characters, length_in_units
from runner.data.spans import Best, best_of_questions, no_answer_scores
from runner.data.splits import SPLIT, Part, Splits
from runner.data.squad_json import read_squad_json
from runner.data.task import Dataset
from runner.data.windows import Windows, answer_tokens, check_room, check_stride, null_token, windows
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_NOT_CONTEXT = -1  # the offset of tokens that cannot be part of an answer


@dataclass
class Span(Dataset):
    """Questions in SQuAD's form: columns id, context, question, answers {text, answer_start}.

    Official JSON files of SQuAD v1.1 and v2.0 can be read, besides the files that all kinds of task read.
    """

    id: str = "id"
    """Column of the question's id. Where there is no column `id`, the number of the row."""
    context: str = "context"
    """Column of the paragraph."""
    question: str = "question"
    """Column of the question."""
    answers: str = "answers"
    """Column of the answers: records of `text` and `answer_start`, two lists of the same length, or lists of such
    records. A column `is_impossible` is read too."""
    answer_text: str | None = None
    """Column of the answer's text, instead of `answers`, for files with one answer in each row."""
    answer_start: str | None = None
    """Column of the character where the answer begins in the paragraph, together with `answer_text`."""
    doc_stride: int = 128
    """Tokens that two neighbouring windows of a long paragraph share."""
    n_best: int = 20
    """Start and end tokens considered for each window."""
    max_answer_length: int = 30
    """Most tokens in an answer."""
    unanswerable: bool = False
    """Questions may have no answer, as in SQuAD v2.0: both lists of `answers` are empty then."""
    null_threshold: float = 0.0
    """A difference of sums of logits, used with `unanswerable`: a question is answered unless the logits of no answer
    exceed those of its best span by more. Choose it on a hold-out of train, where `runner.evaluate` prints the best
    one, never on the split that the table reports."""
    drop_misaligned: bool = False
    """Leave out questions whose answer does not occur at its offset, instead of refusing the data."""
    metric: str = "f1"
    """The main metric, which names the columns of the table: f1 or exact_match of SQuAD's words, which stand between
    blanks; or for scripts that write none between words (Chinese, Japanese, Thai, ...) character_f1 or
    character_exact_match, by MLQA's rule: each of their characters counts as a word, and punctuation of any script as
    nothing."""

    architecture: ClassVar[str] = "AutoModelForQuestionAnswering"
    pipeline_tag: ClassVar[str] = "question-answering"
    label_names: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")
    inputs: ClassVar[tuple[str, ...]] = ("context", "question")
    answer: ClassVar[str] = "answer"
    metrics: ClassVar[tuple[str, ...]] = ("f1", "exact_match", "character_f1", "character_exact_match")
    scoring: ClassVar[tuple[str, ...]] = ("metric", "n_best", "max_answer_length", "null_threshold")
    selecting: ClassVar[tuple[str, ...]] = (
        *Dataset.selecting, "id", "context", "question", "answers", "answer_text", "answer_start", "drop_misaligned",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("n_best", "max_answer_length"):
            if getattr(self, key) < 1:
                raise UserError(f"dataset.{key}={getattr(self, key)} must be at least 1")
        if (self.answer_text is None) != (self.answer_start is None):
            raise UserError("dataset.answer_text and dataset.answer_start must be given together, or not at all")
        if not math.isfinite(self.null_threshold):
            raise UserError(f"dataset.null_threshold={self.null_threshold} must be a finite difference of logits")
        if self.null_threshold and not self.unanswerable:
            raise UserError(
                f"dataset.null_threshold={self.null_threshold} has no effect if every question has an answer; if "
                "questions may have none, set dataset.unanswerable=true"
            )
        # A window holds [CLS] question [SEP] part of the paragraph [SEP]; the stride must be less than that part.
        check_stride(self.doc_stride, self.max_seq_length, 8)

    # --- reading --------------------------------------------------------------------------------------------

    def read(self, train: bool = True) -> Examples:
        examples = super().read(train)
        advise(self.metric, arrow.lists(arrow.field(arrow.table(examples.evaluation, "answers")["answers"], "text")))
        return examples

    def text_columns(self) -> Sequence[str]:
        return [self.id, self.context, self.question, *([self.answer_text] if self.answer_text else [])]

    def readers(self, labels: bool = True) -> Mapping[str, Reader]:
        return {".json": partial(read_squad_json, labels=labels)}

    def named(self, splits: Splits) -> Splits:
        return splits.mapped(self._named)

    def _named(self, part: Part) -> Part:
        columns = part.examples.column_names
        has_ids = self.id in columns or self.id != Span.id
        given = {**({"id": self.id} if has_ids else {}), "context": self.context, "question": self.question}
        given |= {IMPOSSIBLE: IMPOSSIBLE} if IMPOSSIBLE in columns else {}
        if self.answer_text is None or self.answer_start is None:
            part = from_lists(part.renamed({**given, "answers": self.answers}), self.answers)
        else:
            part = part.renamed({**given, "text": self.answer_text, "answer_start": self.answer_start})
            part.check_text("text", self.answer_text, missing=True)
            part = from_single(part, self.answer_start)
        part.check_text("context", self.context, missing=True)  # `checked` reports missing ones, with the answers
        part.check_text("question", self.question)
        ids = part.ids(self.id if has_ids else None)
        others = part.examples.select_columns([name for name in COLUMNS if name != "id"])
        return part.holding(others.add_column("id", ids).select_columns(list(COLUMNS)))  # type: ignore[call-arg]

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
                f"{given}: its head has {config.num_labels} outputs, but spans need two, a start and an end"
            )
        config.num_labels = 2

    def tokenising(self) -> list[Any]:
        return [self.max_seq_length, self.doc_stride, *(["unanswerable"] if self.unanswerable else [])]

    def check_lengths(self, examples: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> None:
        check_room(examples, tokenizer, self.max_seq_length, self.doc_stride)

    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        made = windows(batch["question"], batch["context"], tokenizer, self.max_seq_length, self.doc_stride)
        columns = made.inputs | {"example": [indices[row] for row in made.rows]}
        nulls = [null_token(tokens, tokenizer) if self.unanswerable else 0 for tokens in made.inputs["input_ids"]]
        if labels:
            return _labelled(columns, made, batch["answers"], nulls)
        for side, name in enumerate(("start_character", "end_character")):
            columns[name] = [
                [o[side] if is_context else _NOT_CONTEXT for o, is_context in zip(offset, inside, strict=True)]
                for offset, inside in zip(made.offsets, made.context, strict=True)
            ]
        return columns | ({"null_token": nulls} if self.unanswerable else {})

    def report(
        self, examples: datasets.Dataset, features: datasets.Dataset, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        with_features = set(features["example"])
        missing = [i for i in range(len(examples)) if i not in with_features]
        if missing:
            log.warning(
                "%d of %d training questions are left out, because no token covers their answer or no window of "
                "dataset.max_seq_length=%d tokens holds all of it (such as id %s)",
                len(missing), len(examples), self.max_seq_length, examples[missing[0]]["id"],
            )  # fmt: skip

    # --- outputs --------------------------------------------------------------------------------------------

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        return Prediction((outputs.start_logits, outputs.end_logits), choices=tokens, tokens=tokens)

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        return 2 * sum(features["length"])

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        answers, no_answer = self._spans(examples, features, logits)
        given = arrow.table(examples, "id", "answers")
        gold = dict(zip(given["id"].to_pylist(), arrow.lists(arrow.field(given["answers"], "text")), strict=True))
        splits = _ids_by_split(examples, list(gold))
        counted, choosing = next(iter(splits.values())), {}
        scoring = Scoring(self.metric, self.unanswerable, gold)
        if self.unanswerable:
            choosing = scoring.choosing(counted, no_answer, answers)
            answers = self._given(answers, no_answer)
        scores = scoring.scores(answers)
        metrics: dict[str, float] = {}
        for split, ids in splits.items():
            suffix = "" if ids is counted else f"_{split}"
            metrics |= {f"{name}{suffix}": value for name, value in scoring.metrics(ids, scores).items()}
        return Scores(metrics, answers, {id: scoring.main(scores, id) for id in counted}, choosing=choosing)

    def answered(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> list[Any]:
        return list(self._given(*self._spans(examples, features, logits)).values())

    def _spans(
        self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]
    ) -> tuple[dict[str, str], dict[str, float]]:
        """Question id -> the text of its best span; and, with `unanswerable`, the score of no answer."""
        best = best_of_questions(features, logits, self.n_best, self.max_answer_length)
        texts = _texts(examples, best)
        scores = no_answer_scores(features, logits, best, len(examples)) if self.unanswerable else []
        return texts, dict(zip(texts, scores, strict=self.unanswerable))

    def _given(self, texts: dict[str, str], no_answer: dict[str, float]) -> dict[str, str]:
        """The answers: a question whose score of no answer is above the threshold has an empty one."""
        return {id: "" if no_answer.get(id, -math.inf) > self.null_threshold else text for id, text in texts.items()}

    # --- for people -----------------------------------------------------------------------------------------

    def shown(self, example: Mapping[str, Any]) -> dict[str, str]:
        gold = list(dict.fromkeys(example["answers"]["text"]))
        start, stop = 0, AROUND  # without an answer: the beginning of the paragraph
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
        lengths = [length_in_units(text, self.metric) for text in (gold[0] if gold else "", example["context"])]
        unit, limits = "word", ((1, 2, 4), (50, 100, 150, 200))
        if by_characters(self.metric):
            unit, limits = "character", ((2, 4, 8), (100, 200, 300, 400))
        return {
            **answerable,
            "Question word": question_word(example["question"]),
            "Length of the answer": length_range(lengths[0], limits[0], unit) if gold else "no answer",
            "Length of the paragraph": length_range(lengths[1], limits[1], unit),
        }


def _labelled(
    columns: dict[str, list], made: Windows, answers: Sequence[Mapping[str, list]], nulls: Sequence[int]
) -> dict[str, list]:
    """The columns with the first and last token of each answer, or the token of no answer where a window does not hold
    it; without the windows of questions whose answer is in none."""
    spans: list[tuple[int, int]] = []
    labelled: list[int] = []
    for row, group in groupby(made.rows):
        own = slice(len(spans), len(spans) + len(list(group)))
        held = answer_tokens(answers[row], made.offsets[own], made.context[own])
        if any(held) or not answers[row]["answer_start"]:
            labelled += range(own.start, own.stop)
        spans += [span or (null, null) for span, null in zip(held, nulls[own], strict=True)]
    columns |= {name: [span[side] for span in spans] for side, name in enumerate(Span.label_names)}
    return {name: [values[i] for i in labelled] for name, values in columns.items()}


def _texts(examples: datasets.Dataset, best: Mapping[int, Best]) -> dict[str, str]:
    """Question id -> the text of its best span."""
    questions = arrow.table(examples, "id", "context")
    pairs = zip(questions["id"].to_pylist(), questions["context"].to_pylist(), strict=True)
    # A question without a valid span (possible only with a very small n_best) gets an empty answer.
    return {id: context[slice(*best[i][1:])] if i in best else "" for i, (id, context) in enumerate(pairs)}


def _ids_by_split(examples: datasets.Dataset, ids: Sequence[str]) -> dict[str, list[str]]:
    """Name of an evaluation split -> its questions' ids; a single split has an empty name."""
    if SPLIT not in examples.column_names:
        return {"": list(ids)}
    by_split: dict[str, list[str]] = {}
    for split, id in zip(arrow.table(examples, SPLIT)[SPLIT].to_pylist(), ids, strict=True):
        by_split.setdefault(split, []).append(id)
    return by_split

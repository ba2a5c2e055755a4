"""Extractive question answering in SQuAD's format: find the span of a paragraph that answers a question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pruning import Prediction
from runner.data import arrow
from runner.data.answers import COLUMNS, IMPOSSIBLE, check_answers, fingerprint, from_lists, from_single
from runner.data.files import Reader
from runner.data.readable import AROUND, excerpt, length_range, question_word
from runner.data.spans import Best, answer_tokens, best_of_questions, no_answer_scores, null_token
from runner.data.splits import SPLIT, Part, Splits
from runner.data.squad_json import read_squad_json
from runner.data.squad_scores import best_of, best_of_v2, best_threshold, means
from runner.data.task import Dataset, Scores
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

SCORED = ("exact_match", "f1")  # the order of a question's scores
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
        if not 0 < self.doc_stride < self.max_seq_length - 8:
            raise UserError(
                f"dataset.doc_stride={self.doc_stride} does not fit dataset.max_seq_length={self.max_seq_length}: "
                "the stride must be positive and well below it"
            )

    # --- reading --------------------------------------------------------------------------------------------

    def text_columns(self) -> Sequence[str]:
        return [self.id, self.context, self.question, *([self.answer_text] if self.answer_text else [])]

    def readers(self) -> Mapping[str, Reader]:
        return {".json": read_squad_json}

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

    def tokenized(
        self, batch: dict[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase, labels: bool
    ) -> dict[str, list]:
        try:
            encoded = tokenizer(
                [
                    question.lstrip() for question in batch["question"]
                ],  # leading blanks would take tokens from the paragraph
                batch["context"],
                truncation="only_second",
                max_length=self.max_seq_length,
                stride=self.doc_stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the tokenizer's Rust code, not an Exception
                raise
            raise UserError(
                f"a question is so long that dataset.max_seq_length={self.max_seq_length} leaves its paragraph at most "
                f"dataset.doc_stride={self.doc_stride} tokens: raise the first, or lower the second"
            ) from None
        rows = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        context = [[part == 1 for part in encoded.sequence_ids(i)] for i in range(len(rows))]
        columns: dict[str, list] = {name: encoded[name] for name in encoded}
        nulls = [null_token(tokens, tokenizer) if self.unanswerable else 0 for tokens in encoded["input_ids"]]
        if labels:
            spans = [
                answer_tokens(batch["answers"][row], offset, inside, null)
                for row, offset, inside, null in zip(rows, offsets, context, nulls, strict=True)
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
                columns["null_token"] = nulls
        return columns

    # --- outputs --------------------------------------------------------------------------------------------

    def heads(self, outputs: Any, tokens: torch.Tensor) -> Prediction:
        return Prediction((outputs.start_logits, outputs.end_logits), choices=tokens, tokens=tokens)

    def logits_of(self, features: datasets.Dataset, classes: int) -> int:
        return 2 * sum(features["length"])

    def score(self, examples: datasets.Dataset, features: datasets.Dataset, logits: list[np.ndarray]) -> Scores:
        best = best_of_questions(features, logits, self.n_best, self.max_answer_length)
        answers = _texts(examples, best)
        given = arrow.table(examples, "id", "answers")
        gold = dict(zip(given["id"].to_pylist(), arrow.lists(arrow.field(given["answers"], "text")), strict=True))
        splits = _ids_by_split(examples, list(gold))
        counted, choosing = next(iter(splits.values())), {}
        if self.unanswerable:
            no_answer = dict(zip(gold, no_answer_scores(features, logits, best, len(examples)), strict=True))
            choosing = self._choosing(counted, no_answer, answers, gold)
            answers = {id: "" if no_answer[id] > self.null_threshold else text for id, text in answers.items()}
        score_one = best_of_v2 if self.unanswerable else best_of
        scores = {id: score_one(answers[id], texts) for id, texts in gold.items()}
        metrics: dict[str, float] = {}
        for split, ids in splits.items():
            suffix = "" if ids is counted else f"_{split}"
            metrics |= {f"{name}{suffix}": value for name, value in self._metrics(ids, scores, gold).items()}
        main = SCORED.index(self.metric)
        return Scores(metrics, answers, {id: scores[id][main] for id in counted}, choosing=choosing)

    def _metrics(
        self, ids: Sequence[str], scores: Mapping[str, tuple[float, float]], gold: Mapping[str, list[str]]
    ) -> dict[str, float]:
        """The means over some questions, and separately over those with and without an answer."""
        groups = {"": ids}
        if self.unanswerable:
            groups |= {"has_answer_": [id for id in ids if gold[id]], "no_answer_": [id for id in ids if not gold[id]]}
        averages = {prefix: means(scores[id] for id in members) for prefix, members in groups.items() if members}
        return {f"{prefix}{name}": value / 100 for prefix, pair in averages.items() for name, value in pair.items()}

    def _choosing(
        self,
        ids: Sequence[str],
        no_answer: Mapping[str, float],
        spans: Mapping[str, str],
        gold: Mapping[str, list[str]],
    ) -> dict[str, float]:
        """The threshold that is best on these very questions, and the score it gives."""
        main = SCORED.index(self.metric)
        if_answered = [best_of_v2(spans[id], gold[id])[main] for id in ids]
        best, threshold = best_threshold([no_answer[id] for id in ids], if_answered, [bool(gold[id]) for id in ids])
        return {f"best_{self.metric}": best, f"best_{self.metric}_threshold": threshold}

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
        return {
            **answerable,
            "Question word": question_word(example["question"]),
            "Length of the answer": length_range(len(gold[0].split()), (1, 2, 4)) if gold else "no answer",
            "Length of the paragraph": length_range(len(example["context"].split()), (50, 100, 150, 200)),
        }


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

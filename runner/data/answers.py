"""The column of answers in SQuAD's form, {text, answer_start}: made, checked, hashed."""

from __future__ import annotations

import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any

from runner.data import arrow
from runner.data.splits import Part
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets

COLUMNS = ("id", "context", "question", "answers")
_SHOWN = 5  # ids that a message names


def check_column(part: Part) -> None:
    """Refuse a column `answers` that does not hold lists of text and of whole numbers."""
    answers = part.examples.features["answers"]
    fields = set(answers) if isinstance(answers, dict) else set()
    if not {"text", "answer_start"} <= fields:
        raise UserError(f"{part.name}: the column answers needs the fields text and answer_start; it is {answers}")
    kinds = {
        name: getattr(getattr(answers[name], "feature", None), "dtype", "no list") for name in ("text", "answer_start")
    }
    if kinds["text"] not in ("string", "large_string", "null") or not re.match("u?int|null", kinds["answer_start"]):
        raise UserError(
            f"{part.name}: the column answers needs lists of text and of whole numbers, not of {kinds['text']} and "
            f"{kinds['answer_start']}"
        )


def from_single(part: Part, column: str) -> Part:
    """Join the columns `text` and `answer_start` into SQuAD's lists, here of one answer each.

    Args:
        column: the name of the column `answer_start` in the data, for messages.
    """
    values = arrow.table(part.examples, "answer_start")["answer_start"].to_pylist()
    starts = [_character(value) for value in values]
    bad = [i for i, start in enumerate(starts) if start is None and values[i] not in (None, "")]
    if bad:
        raise UserError(
            f"{part.where_all(bad)}: column {column}: {values[bad[0]]!r} is not the number of a character, from 0"
        )
    answers = [
        {"text": [text] if text else [], "answer_start": [] if start is None else [start]}
        for text, start in zip(part.examples["text"], starts, strict=True)
    ]
    others = part.examples.select_columns(["id", "context", "question"])
    return part.holding(others.add_column("answers", answers))  # type: ignore[call-arg]


def _character(value: Any) -> int | None:
    """A whole number, however it is written; None for anything else."""
    try:
        return int(value) if float(value) == int(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def check_answers(part: Part, drop: bool, unanswerable: bool = False) -> Part:
    """Refuse (or with `drop` leave out) questions whose answer does not occur at its offset, and those without an
    answer, unless `unanswerable` permits them."""
    columns = arrow.table(part.examples, "context", "answers")
    fields = [arrow.field(columns["answers"], name) for name in ("text", "answer_start")]
    # Missing lists are not empty ones: an empty list states that there is no answer.
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
    named = ", ".join(str(ids[i]) for i in bad[:_SHOWN]) + (", ..." if len(bad) > _SHOWN else "")
    if not drop:
        raise UserError(
            f"{part.where(bad[0])}: {len(bad)} of {len(part.examples)} questions have no answer, or one that does not "
            f"occur at its answer_start (ids {named}); correct them, or leave them out with "
            "dataset.drop_misaligned=true" + _if_meant(without, unanswerable)
        )
    logging.getLogger(__name__).warning("%s: %d questions left out, misaligned: %s", part.name, len(bad), named)
    return part.without(bad)


def _if_meant(without: int, unanswerable: bool) -> str:
    if unanswerable:
        return "; a question that has no answer has two empty lists, text and answer_start"
    return f"; if {without} of them are meant to have no answer, dataset.unanswerable=true" if without else ""


def _aligned(context: str | None, texts: list[str | None], starts: list[int | None]) -> bool:
    """True if there are answers, and each of them is in the context at its offset."""
    if context is None or not texts or len(texts) != len(starts):
        return False
    return all(
        text and start is not None and start >= 0 and context.startswith(text, start)
        for text, start in zip(texts, starts, strict=True)
    )


def fingerprint(examples: datasets.Dataset) -> str:
    """Hash of the contents, whatever file they came from."""
    digest = hashlib.sha256()
    columns = arrow.table(examples, *COLUMNS)
    for name in ("id", "context", "question"):
        arrow.feed(digest, columns[name])
    for name in ("text", "answer_start"):
        arrow.feed(digest, arrow.field(columns["answers"], name))
    return digest.hexdigest()

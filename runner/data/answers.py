"""The column of answers in SQuAD's form, {text, answer_start}: made, checked, hashed."""

from __future__ import annotations

import hashlib
import logging
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from runner.data import arrow
from runner.data.splits import Part
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets

COLUMNS = ("id", "context", "question", "answers")
IMPOSSIBLE = "is_impossible"
"""Column that states, where it exists, that a question has no answer."""
_SHOWN = 5  # ids that a message names
_TEXT = ("string", "large_string")
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def from_lists(part: Part, column: str) -> Part:
    """Check the column `answers`, and make it two lists, of text and of whole numbers, where it is a list of records or
    has numbers written as text.

    Args:
        column: the name of the column in the data, for messages.
    """
    kind: Any = part.examples.features["answers"]
    inner = getattr(kind, "feature", None)
    if getattr(inner, "dtype", None) == "null":  # all lists are empty
        inner = dict.fromkeys(("text", "answer_start"), inner)
    listed = isinstance(inner, dict)
    fields = inner if listed else kind if isinstance(kind, dict) else {}
    if not {"text", "answer_start"} <= set(fields):
        raise UserError(f"{part.name}: the column answers needs the fields text and answer_start; it is {kind}")
    texts, starts = (
        getattr(fields[name] if listed else getattr(fields[name], "feature", None), "dtype", "no list")
        for name in ("text", "answer_start")
    )
    whole = re.match("u?int|null", starts)
    if texts not in (*_TEXT, "null") or not (whole or starts in _TEXT):
        raise UserError(
            f"{part.name}: the column answers needs lists of text and of whole numbers, not of {texts} and {starts}"
        )
    flags = _impossible(part)
    if whole and not listed and not any(flags):
        return _consistent(part)
    made: list[Any] = []
    for i, given in enumerate(arrow.table(part.examples, "answers")["answers"].to_pylist()):
        answers = given
        if listed and given is not None:
            answers = {name: [answer and answer[name] for answer in given] for name in ("text", "answer_start")}
        if answers is not None and flags[i] and not any(answers["text"] or []):
            answers = {"text": [], "answer_start": []}
        elif answers is not None and answers["answer_start"] is not None:
            answers["answer_start"] = [_start(part, i, column, start) for start in answers["answer_start"]]
        made.append(answers)
    others = part.examples.remove_columns("answers")
    return _consistent(part.holding(others.add_column("answers", made)))  # type: ignore[call-arg]


def from_single(part: Part, column: str) -> Part:
    """Join the columns `text` and `answer_start` into SQuAD's lists, here of one answer each.

    Args:
        column: the name of the column `answer_start` in the data, for messages.
    """
    values = arrow.table(part.examples, "answer_start")["answer_start"].to_pylist()
    answers = []
    for i, (text, value, flag) in enumerate(zip(part.examples["text"], values, _impossible(part), strict=True)):
        start = _start(part, i, column, value)
        # Many files have -1 where there is no answer.
        start = None if not text and start is not None and (flag or start < 0) else start
        answers.append({"text": [text] if text else [], "answer_start": [] if start is None else [start]})
    others = part.examples.remove_columns(["text", "answer_start"])
    return _consistent(part.holding(others.add_column("answers", answers)))  # type: ignore[call-arg]


def _start(part: Part, row: int, column: str, value: Any) -> int | None:
    """The number of a character, however it is written; None if it is missing."""
    if value in (None, "") or value != value:
        return None
    with suppress(TypeError, ValueError, OverflowError):
        if float(value) == int(float(value)):
            return int(float(value))
    raise UserError(f"{part.where(row)}: column {column}: {value!r} is not the number of a character, from 0")


def _impossible(part: Part) -> list[bool | None]:
    """The column `is_impossible` if there is one; None where it states nothing."""
    if IMPOSSIBLE not in part.examples.column_names:
        return [None] * len(part.examples)
    values = arrow.table(part.examples, IMPOSSIBLE)[IMPOSSIBLE].to_pylist()
    return [_FLAGS.get(str(value).lower()) for value in values]


def _consistent(part: Part) -> Part:
    """The part, unless a question's `is_impossible` and its answers contradict each other."""
    lists = arrow.field(arrow.table(part.examples, "answers")["answers"], "text")
    for i, (texts, flag) in enumerate(zip(arrow.lists(lists), _impossible(part), strict=True)):
        if flag is not None and flag == bool(texts):
            raise UserError(f"{part.where(i)}: is_impossible={str(flag).lower()}, and it has "
                            f"{f'the answer {texts[0]!r}' if texts else 'no answer'}: correct one of them")  # fmt: skip
    return part


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

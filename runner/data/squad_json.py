"""The official JSON files of SQuAD v1.1 and v2.0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.data.files import read_text
from runner.system.errors import UserError

_LOOK_AHEAD = 10_000_000  # characters in which the key "data" must occur


def read_squad_json(file: Path, labels: bool = True) -> list[dict[str, Any]] | None:
    """The questions of an official SQuAD JSON file, one row each; None if it is another kind of JSON.

    Args:
        labels: the questions have answers; else these are not read.

    Raises:
        UserError: the file has "data" without questions below it, or contradicts itself.
    """
    text = read_text(file)
    if not (text.lstrip().startswith("{") and '"data"' in text[:_LOOK_AHEAD]):
        return None
    try:
        content = json.loads(text)
    except json.JSONDecodeError:  # several objects in a file: JSON lines under another name
        return None
    articles = content.get("data") if isinstance(content, dict) else None
    if articles and not any(isinstance(article, dict) and "paragraphs" in article for article in articles):
        return None  # a list of plain records
    questions: list[dict[str, Any]] = []
    try:
        for question in _questions(content, labels):
            questions.append(question)  # one by one, so that the message can number the wrong one
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is not in SQuAD's JSON format: question {len(questions) + 1}: {error!r} is missing or has the "
            "wrong type"
        ) from error
    without = [number for number, row in enumerate(questions, 1) if row["id"] is None]
    if without and len(without) < len(questions):
        raise UserError(f"{file}: question {without[0]} has no id, and others have: give it one, or remove all ids")
    wrong = [number for number, row in enumerate(questions, 1)
             if row.pop("is_impossible") not in (None, not row["answers"]["text"]) and labels]  # fmt: skip
    if wrong:
        example = questions[wrong[0] - 1]["id"] or f"question {wrong[0]}"
        raise UserError(
            f"{file}: {len(wrong)} questions have answers and is_impossible=true, or neither (such as {example}): "
            "correct them"
        )
    return [{key: value for key, value in row.items() if key != "id"} for row in questions] if without else questions


def _questions(content: Any, labels: bool) -> Iterator[dict[str, Any]]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                impossible = qa.get("is_impossible")
                # Not plausible_answers: those answer something that the question does not ask.
                answers = [] if not labels else qa.get("answers", []) if impossible else qa["answers"]
                if impossible:
                    answers = [answer for answer in answers if answer["text"]]
                yield {
                    "id": str(qa["id"]) if "id" in qa else None,
                    "context": paragraph["context"],
                    "question": qa["question"],
                    "answers": {
                        "text": [answer["text"] for answer in answers],
                        "answer_start": [answer["answer_start"] for answer in answers],
                    },
                    "is_impossible": impossible,
                }

"""SQuAD v2.0's scores against a plain transcription of the rules of the official evaluate-v2.0.py."""

import collections
import random
import re
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.squad_metric import SquadV2Metric
from runner.data.squad_scores import best_of_v2, best_threshold


def plain(text: str) -> str:
    letters = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", letters).split())


def plain_f1(answer: str, prediction: str) -> float:
    wanted, given = plain(answer).split(), plain(prediction).split()
    if not wanted or not given:  # if either is no answer, 1 if they agree
        return float(wanted == given)
    same = sum((collections.Counter(wanted) & collections.Counter(given)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def official(questions: list[dict[str, Any]], threshold: float) -> dict[str, float]:
    """evaluate-v2.0.py, for questions with id, answers, prediction and no_answer."""
    exact, f1, has = {}, {}, {}
    for q in questions:
        gold = [text for text in q["answers"] if plain(text)] or [""]
        exact[q["id"]] = max(float(plain(text) == plain(q["prediction"])) for text in gold)
        f1[q["id"]] = max(plain_f1(text, q["prediction"]) for text in gold)
        has[q["id"]] = bool(q["answers"])
    probabilities = {q["id"]: q["no_answer"] for q in questions}
    predictions = {q["id"]: q["prediction"] for q in questions}

    def applied(raw: dict[str, float]) -> dict[str, float]:
        return {id: float(not has[id]) if probabilities[id] > threshold else s for id, s in raw.items()}

    def best(raw: dict[str, float]) -> tuple[float, float]:
        score = highest = sum(not one for one in has.values())
        at = 0.0
        for id in sorted(probabilities, key=lambda id: probabilities[id]):
            score += raw[id] if has[id] else (-1 if predictions[id] else 0)
            if score > highest:
                highest, at = score, probabilities[id]
        return 100 * highest / len(raw), at

    out = {}
    for name, raw in (("exact", exact), ("f1", f1)):
        found = applied(raw)
        out[name] = 100 * sum(found.values()) / len(found)
        for prefix, wanted in (("HasAns", True), ("NoAns", False)):
            part = [s for id, s in found.items() if has[id] is wanted]
            if part:
                out[f"{prefix}_{name}"] = 100 * sum(part) / len(part)
        out[f"best_{name}"], out[f"best_{name}_thresh"] = best(raw)
    return out


# Not "the", of which nothing is left: the official search for a threshold takes it for an answer, its score does not.
TEXTS = ("", "Ada", "ada lovelace", "in Rome", "Rome.", "a big red dog", "big dog")


@st.composite
def question_sets(draw: st.DrawFn) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 12))
    # Distinct, as a model's are: among equals the official loop may stop at a threshold that there is not.
    scores = draw(st.lists(st.floats(0.01, 0.99), min_size=count, max_size=count, unique=True))
    return [
        {
            "id": str(i),
            "answers": draw(st.lists(st.sampled_from(TEXTS[1:]), max_size=3)),
            "prediction": draw(st.sampled_from(TEXTS)),
            "no_answer": score,
        }
        for i, score in enumerate(scores)
    ]


def ours(questions: list[dict[str, Any]], threshold: float) -> dict[str, float]:
    found = SquadV2Metric().compute(
        predictions=[
            {"id": q["id"], "prediction_text": q["prediction"], "no_answer_score": q["no_answer"]} for q in questions
        ],
        references=[{"id": q["id"], "answers": {"text": q["answers"]}} for q in questions],
        no_answer_threshold=threshold,
    )
    assert found is not None
    return found


@settings(deadline=None, derandomize=True, max_examples=20)
@given(questions=question_sets(), threshold=st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_scores_are_those_of_the_official_script(questions: list[dict[str, Any]], threshold: float) -> None:
    found, expected = ours(questions, threshold), official(questions, threshold)
    for name in ("exact", "f1"):  # where nothing should be answered it says 0, we say a threshold that does so
        at, of = found.pop(f"best_{name}_thresh"), expected.pop(f"best_{name}_thresh")
        assert at == of or (of == 0.0 and at < min(q["no_answer"] for q in questions))
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("", [], 1.0, 1.0),
        ("the", [], 1.0, 1.0),  # nothing is left of it
        ("Rome", [], 0.0, 0.0),
        ("", ["Rome"], 0.0, 0.0),
        ("in Rome", ["Rome", "Paris"], 0.0, 2 / 3),
        ("rome!", ["Rome"], 1.0, 1.0),
        ("Rome", ["the", "Rome"], 1.0, 1.0),
        ("", ["the"], 1.0, 1.0),  # an answer of which nothing is left does not count
    ],
)
def test_one_question(prediction: str, answers: list[str], exact: float, f1: float) -> None:
    assert best_of_v2(prediction, answers) == (exact, pytest.approx(f1))


def test_the_best_threshold_is_the_best_of_all() -> None:
    chance = random.Random(0)
    for _ in range(200):
        count = chance.randint(1, 8)
        scores = [float(chance.randint(-3, 3)) for _ in range(count)]  # often the same
        answered = [chance.choice([0.0, 0.5, 1.0]) for _ in range(count)]
        has = [chance.random() < 0.6 for _ in range(count)]

        def mean(threshold: float) -> float:
            parts = zip(scores, answered, has, strict=True)  # noqa: B023 (called in this round)
            return sum(of if score <= threshold else float(not one) for score, of, one in parts) / count  # noqa: B023

        best, threshold = best_threshold(scores, answered, has)
        assert best == pytest.approx(mean(threshold))
        assert best == pytest.approx(max(mean(t) for t in [min(scores) - 1, *scores]))
